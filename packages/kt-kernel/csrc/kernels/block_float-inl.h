// SPDX-License-Identifier: Apache-2.0
// One or two blocks of 32 of K of a float format: their weights made floats and multiplied by the
// activations of a tile. Textual, included inside a target's namespace after `Vec` and the formats.

// 3 rows x 4 vectors of sums hide the latency of fma (4 cycles, two at a time) and fill 16
// registers with 3 activations and a weight.
inline constexpr int kFloatRows = 3;

// Blocks under one load of the sums, and under one scale. More would push activations out of the
// first-level cache.
inline constexpr int kFloatBlocks = 2;

// Sums of kRows rows and kPanels vectors of float products, in registers for the time of some
// blocks. Weights with a scale are summed by themselves and scaled once.
template <int kRows, int kPanels, bool kScaled>
struct FloatSums {
  Vec::F local[kRows][kPanels];

  explicit FloatSums(const Vec::F (*sums)[kPanels]) {
    for (int row = 0; row < kRows; ++row)
      for (int p = 0; p < kPanels; ++p) local[row][p] = kScaled ? Vec::zero() : sums[row][p];
  }
  void finish(const Vec::F (&scale)[kPanels], Vec::F (*sums)[kPanels]) const {
    for (int row = 0; row < kRows; ++row)
      for (int p = 0; p < kPanels; ++p)
        sums[row][p] = kScaled ? Vec::fma(scale[p], local[row][p], sums[row][p]) : local[row][p];
  }
};

// What many rows ask for while they multiply `bytes` of each bundle: the same bytes of the next
// bundles into the second-level cache, and the bytes behind, which are there already, into the
// first. A few lines with each share of rows: a core has some 12 requests on their way, and all
// lines at once took a tenth of the time.
template <int kPanels>
struct FloatsAhead {
  const std::byte* const (&data)[kPanels];
  int64_t bundle;  // from one bundle to the next
  int bytes;
  static constexpr int kBundles = kPanels * Vec::kLanes / kBundleRows;
  static constexpr int kLine = 64;

  int lines() const { return kBundles * bytes / kLine; }
  void prefetch(int line) const {
    // A number, not a pointer: what follows may lie beyond the matrix.
    const auto here = reinterpret_cast<uintptr_t>(data[line % kBundles * (kPanels / kBundles)]) +
                      line / kBundles * kLine;
    __builtin_prefetch(reinterpret_cast<const void*>(here + bytes), 0, 3);
    __builtin_prefetch(reinterpret_cast<const void*>(here + kBundles * bundle), 0, 2);
  }
};

// `count` blocks of float products for all rows of a tile. A function by itself, so that nothing
// else is in the registers, which the sums need.
template <int kPanels, bool kScaled>
__attribute__((noinline)) void multiply_floats(int count, const float* a, int rows,
                                               const Vec::F (&w)[kFloatBlocks * kBlock][kPanels],
                                               const Vec::F (&scale)[kPanels],
                                               const FloatsAhead<kPanels>& ahead,
                                               Vec::F (*sums)[kPanels]) {
  const int64_t block_stride = int64_t{rows} * kBlock;
  // Shares that differ by at most one row: no short one at the end.
  const int shares = (rows + kFloatRows - 1) / kFloatRows;
  const int lines = (ahead.lines() + shares - 1) / shares;
  int line = 0;
  for (int share = 0; share < shares; ++share) {
    const int mine = rows / (shares - share);
    const int stop = std::min(line + lines, ahead.lines());
    for (; line < stop; ++line) ahead.prefetch(line);
    with_rows<kFloatRows>(mine, [&](auto constant) {
      FloatSums<constant, kPanels, kScaled> products(sums);
      for (int block = 0; block < count; ++block) {
        const float* const x = a + block * block_stride;
#pragma GCC unroll 4
        for (int k = 0; k < kBlock; ++k) {
          Vec::F left[constant];
          for (int row = 0; row < constant; ++row) left[row] = Vec::set1(x[row * kBlock + k]);
          for (int p = 0; p < kPanels; ++p)
            for (int row = 0; row < constant; ++row)
              products.local[row][p] =
                  Vec::fma(left[row], w[block * kBlock + k][p], products.local[row][p]);
        }
      }
      products.finish(scale, sums);
    });
    rows -= mine, a += mine * kBlock, sums += mine;
  }
}

// `count` blocks of float products, at most kFloatBlocks, under one scale if any. Few rows meet the
// weights as they are loaded; for many, those are made floats once and kept in the first-level
// cache.
template <class Weights, int kRows, int kPanels>
inline void multiply_float_blocks(int count, const std::byte* const (&data)[kPanels],
                                  const std::byte* const (&header)[kPanels], int sub,
                                  const ActTile& act, int64_t index, int64_t bundle,
                                  Vec::F (*sums)[kPanels]) {
  constexpr FormatInfo kInfo = Weights::kInfo;
  const int64_t block_stride = int64_t{act.rows} * kBlock;
  const float* a = static_cast<const float*>(act.data) + index * block_stride;
  Vec::F scale[kPanels];
  if constexpr (Weights::kScaled)
    for (int p = 0; p < kPanels; ++p) scale[p] = Weights::scale(header[p], sub, kInfo.header_bytes);
  if constexpr (kRows) {
    FloatSums<kRows, kPanels, Weights::kScaled> products(sums);
    for (int block = 0; block < count; ++block, a += block_stride) {
      typename Weights::Block packed[kPanels];
      for (int p = 0; p < kPanels; ++p)
        packed[p].set(data[p] + block * kInfo.bundle_data_bytes(), kInfo.run_bytes());
      for (int k = 0; k < kBlock; k += 4) {
        unrolled<kPanels>([&](auto p) {
          Vec::F w[4];
          packed[p].load4(k, w);
          for (int i = 0; i < 4; ++i)
            for (int row = 0; row < kRows; ++row)
              products.local[row][p] =
                  Vec::fma(Vec::set1(a[row * kBlock + k + i]), w[i], products.local[row][p]);
        });
      }
    }
    products.finish(scale, sums);
  } else {
    Vec::F w[kFloatBlocks * kBlock][kPanels];
    for (int block = 0; block < count; ++block) {
      for (int p = 0; p < kPanels; ++p) {
        typename Weights::Block packed;
        packed.set(data[p] + block * kInfo.bundle_data_bytes(), kInfo.run_bytes());
        for (int k = 0; k < kBlock; k += 4) {
          Vec::F four[4];
          packed.load4(k, four);
          for (int i = 0; i < 4; ++i) w[block * kBlock + k + i][p] = four[i];
        }
      }
    }
    const FloatsAhead<kPanels> ahead{data, bundle, count * kInfo.bundle_data_bytes()};
    multiply_floats<kPanels, Weights::kScaled>(count, a, act.rows, w, scale, ahead, sums);
  }
}
