// SPDX-License-Identifier: Apache-2.0
// The only matrix-multiply loop nest, for every weight format and number of rows. How a format's
// bytes become operands is csrc/formats; who computes which range is csrc/core. Textual.
//
// For one or a few vectors of outputs (kLanes / 8 panels each) at a time, blocks of 32 of K ascend;
// a block's weights are unpacked once and meet all rows of the tile. Every output therefore sums K
// in one order (floats: k ascending in one chain; integers: exact inside a block, blocks ascending
// in one chain), with the same operations whatever the number of rows: a row's bits do not depend
// on its company.

// kRows rows known at compile time keep their sums in registers; 0: as many as the tile has, whose
// sums live in the first-level cache.
// Floats: 3 rows x 4 vectors of sums hide the latency of fma (4 cycles, two at a time) and fill 16
// registers with 3 activations and a weight.
inline constexpr int kFloatRows = 3;

// Calls body(std::integral_constant) for 0 <= index < kCount, indices being constants so that
// arrays indexed by them stay in registers.
template <int kCount, class Body>
inline void unrolled(Body&& body) {
  [&]<int... kIndices>(std::integer_sequence<int, kIndices...>) {
    (body(std::integral_constant<int, kIndices>{}), ...);
  }(std::make_integer_sequence<int, kCount>{});
}

// The exact dot products of one row's 32 activations with a block's weights, few rows.
struct VectorProducts {
  const Vec::I (&w)[8];
  const int8_t* a;

  Vec::I s8(const int16_t* sums) const { return Dot::s8(w, a, sums); }
  Vec::I u4() const { return Dot::u4(w, a); }
  Vec::I u5() const { return Dot::u5(w, a); }
  Vec::I u6(Vec::I scales) const { return Dot::u6(w, a, scales); }
};

// What a block adds to the sums of one row, once its exact products are known: sum += scale * dot +
// minimum * (scaled sum of a), as far as the format has a minimum.
template <class Weights>
struct BlockScale {
  Vec::F scale, minimum;

  BlockScale() = default;
  template <class Operands>
  BlockScale(const std::byte* group, int sub, int64_t stride, Operands operands)
      : scale(Weights::scale(group, sub, stride)) {
    if constexpr (Weights::kHasMinimum) minimum = operands;
  }
  Vec::F add(Vec::F sum, Vec::I dot, const ActTile& act, int64_t row) const {
    if constexpr (Weights::kHasMinimum)
      sum = Vec::fma(minimum, Vec::set1(act.scaled_sums[row]), sum);
    return Vec::fma(Vec::to_float(dot), Vec::mul(scale, Vec::set1(act.scales[row])), sum);
  }
};

// One block of integer products for kRows rows and one vector of outputs.
template <class Weights, int kRows, int kPanel, int kPanels>
inline void multiply_few(const std::byte* block, const std::byte* group, int sub, int64_t stride,
                         const ActTile& act, int64_t index, Vec::F (*sums)[kPanels]) {
  Vec::I w[8];
  Weights::unpack(block, stride, w);
  const auto operands = Weights::operands(group, sub, stride);
  const BlockScale<Weights> scale(group, sub, stride, operands);
  unrolled<kRows>([&](auto row) {
    const int64_t at = index * kRows + row;
    const VectorProducts products{w, static_cast<const int8_t*>(act.data) + at * kBlock};
    const Vec::I dot = Weights::dot(products, act.sums + 2 * at, operands);
    sums[row][kPanel] = scale.add(sums[row][kPanel], dot, act, at);
  });
}

// A block's weights as the many-row products want them: unpacked, without their offset.
template <class Weights, class Operands>
inline void unpack_centered(const std::byte* block, int64_t stride, Operands operands,
                            Vec::I (&w)[8]) {
  Weights::unpack(block, stride, w);
  Weights::center(operands, w);
}

// One block of integer products for all rows of a tile and all its vectors of outputs.
template <class Weights, int kPanels>
inline void multiply_many(const std::byte* const (&data)[kPanels],
                          const std::byte* const (&header)[kPanels], int sub, int64_t stride,
                          const ActTile& act, int64_t index, Vec::F (*sums)[kPanels]) {
  using Block = Dot::Block<Weights::kMagnitude, Weights::kHasHalves>;
  Block blocks[kPanels];
  BlockScale<Weights> scales[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    const auto operands = Weights::operands(header[p], sub, stride);
    Vec::I w[8];
    unpack_centered<Weights>(data[p], stride, operands, w);
    if constexpr (Weights::kHasHalves)
      blocks[p].set(w, operands);
    else
      blocks[p].set(w, Vec::zero_i());
    scales[p] = {header[p], sub, stride, operands};
  }
  for (int row = 0; row < act.rows; ++row) {
    const int64_t at = index * act.rows + row;
    Vec::I dots[kPanels];
    Block::multiply(blocks, static_cast<const uint8_t*>(act.data) + at * kBlock, dots);
    for (int p = 0; p < kPanels; ++p) sums[row][p] = scales[p].add(sums[row][p], dots[p], act, at);
  }
}

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

// Calls body(std::integral_constant) with `rows` in [1, kMost] as a constant.
template <int kMost, class Body>
inline void with_rows(int rows, Body&& body) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return with_rows<kMost - 1>(rows, body);
  }
  body(std::integral_constant<int, kMost>{});
}

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

// One block of all rows and panels, by the way that suits format and number of rows.
template <class Weights, int kRows, int kPanels>
inline void multiply_block(const std::byte* const (&data)[kPanels],
                           const std::byte* const (&header)[kPanels], int sub, int64_t stride,
                           const ActTile& act, int64_t index, Vec::F (*sums)[kPanels]) {
  if constexpr (!kRows && requires { Weights::kMultipliesTile; }) {
    // A target's own instructions for a whole tile, in a struct derived from the format's.
    Weights::multiply(data, header, sub, stride, act, index, sums);
  } else if constexpr (Weights::kInteger && !kRows) {
    multiply_many<Weights>(data, header, sub, stride, act, index, sums);
  } else if constexpr (Weights::kInteger) {
    unrolled<kPanels>([&](auto p) {
      multiply_few<Weights, kRows, p>(data[p], header[p], sub, stride, act, index, sums);
    });
  } else {
    multiply_float_block<Weights, kRows>(data, header, sub, stride, act, index, sums);
  }
}

// Panels are streams of a few pages each, too short for the hardware to run ahead in them. Few rows
// ask for what they need kAhead bytes later, 100 ns at 10 GB/s, and after a panel's end for its
// successor, kStep panels on. Many rows take long enough to ask for the same block of that one.
template <int kRows, int kStep>
inline void prefetch_ahead(const std::byte* data, const std::byte* end, int bytes, int64_t stride) {
  constexpr int64_t kAhead = 1024;
  auto at = reinterpret_cast<uintptr_t>(data);  // may lie beyond the matrix: not a pointer
  if constexpr (kRows == 0) {
    at += kStep * stride;
  } else {
    at += kAhead;
    if (at >= reinterpret_cast<uintptr_t>(end)) at += (kStep - 1) * stride;
  }
  for (int line = 0; line < bytes; line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(at + line), 0, kRows == 0 ? 2 : 3);
}

// The outputs of kPanels vectors from panel `panel` on, for all rows of the tile.
template <class Weights, int kRows, int kPanels>
inline void gemm_panels(const GemmArgs& args, int64_t panel) {
  constexpr int kVectorPanels = Vec::kLanes / kPanelRows;
  constexpr int kStep = kPanels * kVectorPanels;  // panels of one call
  constexpr FormatInfo kInfo = Weights::kInfo;
  const int rows = kRows ? kRows : args.a.rows;
  const PackedMatrix& b = args.b;
  const int64_t stride = b.panel_bytes;
  const std::byte* header[kPanels];
  const std::byte* data[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    header[p] = b.data + (panel + p * kVectorPanels) * stride;
    data[p] = header[p] + b.header_bytes;
  }
  Vec::F sums[kRows ? kRows : kTileRows][kPanels];
  for (int row = 0; row < rows; ++row)
    for (int p = 0; p < kPanels; ++p) sums[row][p] = Vec::zero();

  const int64_t blocks = b.k_padded / kBlock;
  int64_t block = 0;
  const auto multiply_next = [&](int sub) {
    multiply_block<Weights, kRows>(data, header, sub, stride, args.a, block++, sums);
    for (int p = 0; p < kPanels; ++p) {
      const std::byte* const end = b.data + (panel + p * kVectorPanels + 1) * stride;
      for (int vector_panel = 0; vector_panel < kVectorPanels; ++vector_panel)
        prefetch_ahead<kRows, kStep>(data[p] + vector_panel * stride, end + vector_panel * stride,
                                     kInfo.data_bytes, stride);
      data[p] += kInfo.data_bytes;
    }
  };
  const auto next_group = [&] {
    for (int p = 0; p < kPanels; ++p) header[p] += kInfo.header_bytes;
  };
  if constexpr (kInfo.group == kBlock) {
    for (; block < blocks; next_group()) multiply_next(0);
  } else {
    const int64_t per_group = b.group_size ? b.group_size / kBlock : blocks;
    for (int64_t end = per_group; block < blocks; end += per_group, next_group())
      for (int sub = 0; block < end && block < blocks; ++sub) multiply_next(sub);
  }

  for (int p = 0; p < kPanels; ++p) {
    const int64_t output = (panel + p * kVectorPanels) * kPanelRows;
    const int64_t left = b.n - output;
    if (left <= 0) break;
    const int width = left < Vec::kLanes ? static_cast<int>(left) : Vec::kLanes;
    const int64_t column = output - args.panels.begin * kPanelRows;
    for (int row = 0; row < rows; ++row) {
      float* c = args.c + row * args.c_stride + column;
      Vec::F value = sums[row][p];
      if (args.bias) value = Vec::add(value, Vec::load_n(args.bias + output, width));
      if (args.accumulate) value = Vec::add(Vec::load_n(c, width), value);
      Vec::store_n(c, value, width);
    }
  }
}

template <class Weights, int kRows, int kPanels>
inline void gemm_range(const GemmArgs& args) {
  constexpr int kStep = Vec::kLanes / kPanelRows;
  int64_t panel = args.panels.begin;
  for (; panel + kStep * kPanels <= args.panels.end; panel += kStep * kPanels)
    gemm_panels<Weights, kRows, kPanels>(args, panel);
  // Ranges are whole pairs of panels.
  constexpr int kPair = kPanelPair / kStep;
  if constexpr (kPanels > kPair) {
    for (; panel < args.panels.end; panel += kPanelPair)
      gemm_panels<Weights, kRows, kPair>(args, panel);
  }
}

template <class Weights>
inline void gemm(const GemmArgs& args) {
  if constexpr (Weights::kInteger) {
    if (args.a.biased()) return gemm_range<Weights, 0, 2>(args);
    // The panels of a single row share its 8 vectors of activations, kept in registers.
    if (args.a.rows == 1) return gemm_range<Weights, 1, 4>(args);
    with_rows<kFewRows>(args.a.rows, [&](auto rows) { gemm_range<Weights, rows, 1>(args); });
  } else {
    if (args.a.rows > kFloatRows) return gemm_range<Weights, 0, 4>(args);
    with_rows<kFloatRows>(args.a.rows, [&](auto rows) { gemm_range<Weights, rows, 4>(args); });
  }
}

template <class Weights>
inline void pack(const PackArgs& args) {
  for (int64_t panel = args.panels.begin; panel < args.panels.end; ++panel) {
    std::byte* const header = args.into.data + panel * args.into.panel_bytes;
    for (int lane = 0; lane < kPanelRows; ++lane) {
      const int64_t row = panel * kPanelRows + lane;
      Weights::pack_row(args, row < args.into.n ? row : -1,
                        {header, header + args.into.header_bytes, lane});
    }
  }
}

#define KT_DEFINE(name, Struct)                                         \
  inline void gemm_##name(const GemmArgs& args) { gemm<Struct>(args); } \
  inline void pack_##name(const PackArgs& args) { pack<Struct>(args); }
KT_FORMATS(KT_DEFINE)
#undef KT_DEFINE
