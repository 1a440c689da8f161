// SPDX-License-Identifier: Apache-2.0
// One block of 32 of K of an integer format: its weights unpacked and multiplied by the activations
// of a tile. Textual, included inside a target's namespace after `Vec`, `Dot` and the formats.
//
// Few rows (kFewRows) meet the weights as they are unpacked, panel by panel. Many rows share
// weights that were prepared once, two panels of them each broadcast of activations.

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
  BlockScale(const std::byte* group, int sub, Operands operands)
      : scale(Weights::scale(group, sub, Weights::kInfo.header_bytes)) {
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
inline void multiply_few(const std::byte* block, const std::byte* group, int sub,
                         const ActTile& act, int64_t index, Vec::F (*sums)[kPanels]) {
  Vec::I w[8];
  Weights::unpack(block, Weights::kInfo.run_bytes(), w);
  const auto operands = Weights::operands(group, sub, Weights::kInfo.header_bytes);
  const BlockScale<Weights> scale(group, sub, operands);
  unrolled<kRows>([&](auto row) {
    const int64_t at = index * kRows + row;
    const VectorProducts products{w, static_cast<const int8_t*>(act.data) + at * kBlock};
    const Vec::I dot = Weights::dot(products, act.sums + 2 * at, operands);
    sums[row][kPanel] = scale.add(sums[row][kPanel], dot, act, at);
  });
}

// A block's weights as the many-row products want them: unpacked, without their offset.
template <class Weights, class Operands>
inline void unpack_centered(const std::byte* block, Operands operands, Vec::I (&w)[8]) {
  Weights::unpack(block, Weights::kInfo.run_bytes(), w);
  Weights::center(operands, w);
}

// One block of integer products for all rows of a tile and all its vectors of outputs.
template <class Weights, int kPanels>
inline void multiply_many(const std::byte* const (&data)[kPanels],
                          const std::byte* const (&header)[kPanels], int sub, const ActTile& act,
                          int64_t index, Vec::F (*sums)[kPanels]) {
  using Block = Dot::Block<Weights::kMagnitude, Weights::kHasHalves>;
  Block blocks[kPanels];
  BlockScale<Weights> scales[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    const auto operands = Weights::operands(header[p], sub, Weights::kInfo.header_bytes);
    Vec::I w[8];
    unpack_centered<Weights>(data[p], operands, w);
    if constexpr (Weights::kHasHalves)
      blocks[p].set(w, operands);
    else
      blocks[p].set(w, Vec::zero_i());
    scales[p] = {header[p], sub, operands};
  }
  for (int row = 0; row < act.rows; ++row) {
    const int64_t at = index * act.rows + row;
    Vec::I dots[kPanels];
    Block::multiply(blocks, static_cast<const uint8_t*>(act.data) + at * kBlock, dots);
    for (int p = 0; p < kPanels; ++p) sums[row][p] = scales[p].add(sums[row][p], dots[p], act, at);
  }
}
