// SPDX-License-Identifier: Apache-2.0
// One struct per weight format: how gemm-inl.h reads a packed panel (layouts: kt/formats.h). No
// loops over rows or panels here. Adding a format = one struct that feeds an inner kernel + its
// line in gemm-inl.h. Textual.
//
// Float formats offer  load2(panel, k, w): the weights of k and k + 1, k even, 8 outputs each.
// Integer formats offer load2(block, j, w): 4 bytes of K from 4 * j and from 16 + 4 * j of a block
// of 32, j < 4;
//   dot(acc, w, a) for up to 8 such steps from zero; finish(acc, sums): the exact int32 sum of the
//   block.
// kRows x kPanels is the register tile; kGemvPanels its width when there is a single row.

struct Float32Panels {
  static constexpr bool kInteger = false;
  static constexpr int kBlockBytes = kBlock * kPanelRows * 4;
  // 6 x 2 sums + 2 weights + 1 broadcast = 15 of 16 registers; 12 chains hide the FMA latency (4
  // cycles, 2 a cycle).
  static constexpr int kRows = 6, kPanels = 2;
  static constexpr int kGemvPanels = 4;  // 4 chains: one FMA, that is 32 bytes of weights, a cycle
  static void load2(const std::byte* panel, int k, Vec::F* w) {
    const float* p = reinterpret_cast<const float*>(panel) + static_cast<int64_t>(k) * kPanelRows;
    w[0] = Vec::load(p);
    w[1] = Vec::load(p + kPanelRows);
  }
};

struct Bf16Panels {
  static constexpr bool kInteger = false;
  static constexpr int kBlockBytes = kBlock * kPanelRows * 2;
  static constexpr int kRows = 6, kPanels = 2;
  static constexpr int kGemvPanels = 4;
  static void load2(const std::byte* panel, int k, Vec::F* w) {
    const Vec::I pairs = Vec::load_i(panel + static_cast<int64_t>(k) * kPanelRows * 2);
    w[0] = Vec::even_bf16(pairs);
    w[1] = Vec::odd_bf16(pairs);
  }
};

struct Int8Panels {
  static constexpr bool kInteger = true;
  static constexpr int kBlockBytes = kBlock * kPanelRows;
  static constexpr int kRows = 4, kPanels = 2;
  static constexpr int kGemvPanels =
      1;  // one sequential stream; the 4 panels' worth of chains are within a block
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
