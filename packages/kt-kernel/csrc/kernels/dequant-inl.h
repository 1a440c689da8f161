// SPDX-License-Identifier: Apache-2.0
// One struct per weight format: how gemm-inl.h reads a packed panel (layouts: kt/formats.h). No
// loops over rows or panels here. Adding a format = one struct that feeds an inner kernel + its
// line in gemm-inl.h. Textual.
//
// Float formats offer load(panel, k, step): 8 outputs' weights of k + step; k even, step 0 or 1.
// Integer formats offer load2(block, j, w): 4 bytes of K from 4 * j and from 16 + 4 * j of a block
// of 32, j < 4; dot(acc, w, a) for up to 8 such steps from zero; finish(acc, sums): the exact int32
// sum of the block. kRows x kPanels is the register tile, kGemvPanels its width for a single row.

struct Float32Panels {
  static constexpr bool kInteger = false;
  static constexpr int kBlockBytes = kBlock * kPanelRows * 4;
  // 6 x 2 sums, 2 weights and a broadcast fill 15 of 16 registers; 8 chains would just hide the FMA
  // latency (4 cycles, 2 a cycle), 12 leave slack for the loads.
  static constexpr int kRows = 6, kPanels = 2;
  static constexpr int kGemvPanels = 4;  // 4 chains: one FMA, that is 32 bytes of weights, a cycle
  static Vec::F load(const std::byte* panel, int k, int step) {
    return Vec::load(reinterpret_cast<const float*>(panel) + int64_t{k + step} * kPanelRows);
  }
};

struct Bf16Panels {
  static constexpr bool kInteger = false;
  static constexpr int kBlockBytes = kBlock * kPanelRows * 2;
  static constexpr int kRows = 6, kPanels = 2;
  static constexpr int kGemvPanels = 4;
  static Vec::F load(const std::byte* panel, int k, int step) {
    const Vec::I pairs = Vec::load_i(panel + int64_t{k} * kPanelRows * 2);
    return step == 0 ? Vec::even_bf16(pairs) : Vec::odd_bf16(pairs);
  }
};

struct Int8Panels {
  static constexpr bool kInteger = true;
  static constexpr int kBlockBytes = kBlock * kPanelRows;
  static constexpr int kRows = 4, kPanels = 2;
  static constexpr int kGemvPanels = 1;  // one stream of weights; chains are as short as a block
  static void load2(const std::byte* block, int j, Vec::I* w) {
    w[0] = Vec::load_i(block + 32 * j);
    w[1] = Vec::load_i(block + 32 * (j + 4));
  }
  static Vec::I dot(Vec::I acc, Vec::I w, Vec::I a) { return Vec::dot_s8(acc, w, a); }
  static Vec::I finish(Vec::I acc, const int16_t*) { return acc; }
};

struct Int4Panels {
  static constexpr bool kInteger = true;
  static constexpr int kBlockBytes = kBlock * kPanelRows / 2;
  static constexpr int kRows = 4, kPanels = 2;
  static constexpr int kGemvPanels = 1;
  static void load2(const std::byte* block, int j, Vec::I* w) {
    const Vec::I nibbles = Vec::load_i(block + 32 * j);
    w[0] = Vec::low_nibbles(nibbles);
    w[1] = Vec::high_nibbles(nibbles);
  }
  static Vec::I dot(Vec::I acc, Vec::I w, Vec::I a) { return Vec::dot_u4(acc, w, a); }
  // Stored q is 8 above the value: sum (q - 8) a = sum q a - 8 sum a.
  static Vec::I finish(Vec::I acc, const int16_t* sums) {
    return Vec::sub_i(Vec::finish_u4(acc), Vec::offset_u4(sums));
  }
};
