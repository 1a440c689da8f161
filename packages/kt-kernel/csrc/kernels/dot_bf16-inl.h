// SPDX-License-Identifier: Apache-2.0
// bf16 by vdpbf16ps, which multiplies pairs of K and adds both products to a float. Textual,
// included inside a target's namespace after kernels/gemm-inl.h and dpbf16(sum, pairs, pairs).
//
// The instruction rounds otherwise than two fma, so that every number of rows takes this path: a
// row's bits must not depend on its company.

#include "kernels/bf16_rows-inl.h"

struct DotBf16 : Bf16 {
  static constexpr bool kMultipliesTile = true;
  static constexpr int kRows = 8;  // 8 x 2 sums, 2 weights and a broadcast of 32 registers

  template <int kPanels>
  static void multiply(const std::byte* const (&data)[kPanels], const std::byte* const (&)[kPanels],
                       int, const ActTile& act, int64_t index, Vec::F (*sums)[kPanels]) {
    alignas(64) uint16_t a[kTileRows][kBlock];
    load_bf16_rows(act, index, a);
    for (int row = 0; row < act.rows; row += kRows) {
      const int count = act.rows - row < kRows ? act.rows - row : kRows;
      with_rows<kRows>(count, [&](auto rows) { multiply_pairs<rows>(data, a + row, sums + row); });
    }
  }

 private:
  template <int kCount, int kPanels>
  static void multiply_pairs(const std::byte* const (&data)[kPanels], const uint16_t (*a)[kBlock],
                             Vec::F (*sums)[kPanels]) {
    Vec::F local[kCount][kPanels];
    for (int row = 0; row < kCount; ++row)
      for (int p = 0; p < kPanels; ++p) local[row][p] = sums[row][p];
    for (int pair = 0; pair < kBlock / 2; ++pair) {
      Vec::I w[kPanels];
      for (int p = 0; p < kPanels; ++p) w[p] = load_pair(data[p], pair);
      for (int row = 0; row < kCount; ++row) {
        const Vec::I x = Vec::broadcast4(a[row] + 2 * pair);
        for (int p = 0; p < kPanels; ++p) local[row][p] = dpbf16(local[row][p], x, w[p]);
      }
    }
    for (int row = 0; row < kCount; ++row)
      for (int p = 0; p < kPanels; ++p) sums[row][p] = local[row][p];
  }
};

inline void gemm_dot_bf16(const GemmArgs& args) { gemm_range<DotBf16, 0, 2>(args); }
