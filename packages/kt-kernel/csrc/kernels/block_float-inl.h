// SPDX-License-Identifier: Apache-2.0
// One block of 32 of K of a float format: its weights made floats and multiplied by the activations
// of a tile. Textual, included inside a target's namespace after `Vec` and the formats.

// 3 rows x 4 vectors of sums hide the latency of fma (4 cycles, two at a time) and fill 16
// registers with 3 activations and a weight.
inline constexpr int kFloatRows = 3;

// Sums of kRows rows and kPanels vectors of float products, in registers for the time of a block.
// Weights with a scale are summed by themselves and scaled once.
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

// One block of float products for all rows of a tile. A function by itself, so that nothing else is
// in the registers, which the sums need.
template <int kPanels, bool kScaled>
__attribute__((noinline)) void multiply_floats(const float* a, int rows,
                                               const Vec::F (&w)[kBlock][kPanels],
                                               const Vec::F (&scale)[kPanels],
                                               Vec::F (*sums)[kPanels]) {
  // Shares that differ by at most one row: no short one at the end.
  const int shares = (rows + kFloatRows - 1) / kFloatRows;
  for (int share = 0; share < shares; ++share) {
    const int count = rows / (shares - share);
    with_rows<kFloatRows>(count, [&](auto constant) {
      FloatSums<constant, kPanels, kScaled> products(sums);
#pragma GCC unroll 4
      for (int k = 0; k < kBlock; ++k) {
        Vec::F x[constant];
        for (int row = 0; row < constant; ++row) x[row] = Vec::set1(a[row * kBlock + k]);
        for (int p = 0; p < kPanels; ++p)
          for (int row = 0; row < constant; ++row)
            products.local[row][p] = Vec::fma(x[row], w[k][p], products.local[row][p]);
      }
      products.finish(scale, sums);
    });
    rows -= count, a += count * kBlock, sums += count;
  }
}

// One block of float products. Few rows meet the weights as they are loaded; for many, those are
// made floats once and kept in the first-level cache.
template <class Weights, int kRows, int kPanels>
inline void multiply_float_block(const std::byte* const (&data)[kPanels],
                                 const std::byte* const (&header)[kPanels], int sub, int64_t stride,
                                 const ActTile& act, int64_t index, Vec::F (*sums)[kPanels]) {
  const float* a = static_cast<const float*>(act.data) + index * act.rows * kBlock;
  Vec::F scale[kPanels];
  typename Weights::Block blocks[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    if constexpr (Weights::kScaled) scale[p] = Weights::scale(header[p], sub, stride);
    blocks[p].set(data[p], stride);
  }
  if constexpr (kRows) {
    FloatSums<kRows, kPanels, Weights::kScaled> products(sums);
    for (int k = 0; k < kBlock; k += 4) {
      unrolled<kPanels>([&](auto p) {
        Vec::F w[4];
        blocks[p].load4(k, w);
        for (int i = 0; i < 4; ++i)
          for (int row = 0; row < kRows; ++row)
            products.local[row][p] =
                Vec::fma(Vec::set1(a[row * kBlock + k + i]), w[i], products.local[row][p]);
      });
    }
    products.finish(scale, sums);
  } else {
    Vec::F w[kBlock][kPanels];
    for (int p = 0; p < kPanels; ++p) {
      for (int k = 0; k < kBlock; k += 4) {
        Vec::F four[4];
        blocks[p].load4(k, four);
        for (int i = 0; i < 4; ++i) w[k + i][p] = four[i];
      }
    }
    multiply_floats<kPanels, Weights::kScaled>(a, act.rows, w, scale, sums);
  }
}
