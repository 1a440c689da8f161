// SPDX-License-Identifier: Apache-2.0
// The only matrix-multiply loop nest: register tiles of rows x panels, for every weight format. How
// a format's bytes become operands is dequant-inl.h; who computes which range is csrc/core.
// Textual.
//
// Every output sums K in one order (floats: k ascending in one chain; integers: exact inside a
// block of 32, blocks ascending in one chain), with the same operations in every tile shape: so a
// row's bits do not depend on its company.

// sums[m][p] (8 outputs each) of float activations: row a_rows[m], panel + p.
template <class Weights, int kRows, int kPanels>
inline void multiply_float(const GemmArgs& args, const int64_t (&a_rows)[kRows], int64_t panel,
                           Vec::F (&sums)[kRows][kPanels]) {
  const int k_padded = args.b.k_padded;
  const int64_t panel_bytes = static_cast<int64_t>(k_padded) / kBlock * Weights::kBlockBytes;
  const std::byte* weights = args.b.data + panel * panel_bytes;
  const float* a[kRows];
  for (int m = 0; m < kRows; ++m)
    a[m] = static_cast<const float*>(args.a.data) + a_rows[m] * k_padded;
  for (int k = 0; k < k_padded; k += 2) {
    for (int step = 0; step < 2; ++step) {
      Vec::F w[kPanels];
      for (int p = 0; p < kPanels; ++p) w[p] = Weights::load(weights + p * panel_bytes, k, step);
      for (int m = 0; m < kRows; ++m) {
        const Vec::F x = Vec::set1(a[m][k + step]);
        for (int p = 0; p < kPanels; ++p) sums[m][p] = Vec::fma(x, w[p], sums[m][p]);
      }
    }
  }
}

// sums[m][p] of int8 activations: int32 within a block, then one scaled float addition per block.
template <class Weights, int kRows, int kPanels>
inline void multiply_int(const GemmArgs& args, const int64_t (&a_rows)[kRows], int64_t panel,
                         Vec::F (&sums)[kRows][kPanels]) {
  const int64_t num_blocks = args.b.k_padded / kBlock;
  const int64_t panel_bytes = num_blocks * Weights::kBlockBytes;
  const int64_t num_groups = (args.b.k + args.b.group_size - 1) / args.b.group_size;
  const int64_t blocks_per_group = args.b.group_size / kBlock;
  const std::byte* weights = args.b.data + panel * panel_bytes;
  const uint16_t* scales = args.b.scales + panel * num_groups * kPanelRows;
  const int8_t* a[kRows];
  const float* a_scales[kRows];
  const int16_t* a_sums[kRows];
  for (int m = 0; m < kRows; ++m) {
    a[m] = static_cast<const int8_t*>(args.a.data) + a_rows[m] * args.b.k_padded;
    a_scales[m] = args.a.scales + a_rows[m] * num_blocks;
    a_sums[m] = args.a.sums + a_rows[m] * num_blocks * 2;
  }
  int64_t block = 0;
  for (int64_t group = 0; group < num_groups; ++group) {
    Vec::F w_scales[kPanels];
    for (int p = 0; p < kPanels; ++p)
      w_scales[p] = Vec::load_bf16(scales + (p * num_groups + group) * kPanelRows);
    const int64_t group_end =
        block + blocks_per_group < num_blocks ? block + blocks_per_group : num_blocks;
    for (; block < group_end; ++block) {
      Vec::I dots[kRows][kPanels];
      for (int m = 0; m < kRows; ++m)
        for (int p = 0; p < kPanels; ++p) dots[m][p] = Vec::zero_i();
      for (int j = 0; j < 4; ++j) {
        Vec::I w[kPanels][2];
        for (int p = 0; p < kPanels; ++p)
          Weights::load2(weights + p * panel_bytes + block * Weights::kBlockBytes, j, w[p]);
        for (int step = 0; step < 2; ++step) {
          for (int m = 0; m < kRows; ++m) {
            const Vec::I x = Vec::broadcast4(a[m] + block * kBlock + 16 * step + 4 * j);
            for (int p = 0; p < kPanels; ++p) dots[m][p] = Weights::dot(dots[m][p], w[p][step], x);
          }
        }
      }
      for (int m = 0; m < kRows; ++m) {
        const Vec::F a_scale = Vec::set1(a_scales[m][block]);
        for (int p = 0; p < kPanels; ++p) {
          const Vec::I exact = Weights::finish(dots[m][p], a_sums[m] + 2 * block);
          sums[m][p] = Vec::fma(Vec::to_float(exact), Vec::mul(a_scale, w_scales[p]), sums[m][p]);
        }
      }
    }
  }
}

template <class Weights, int kRows, int kPanels>
inline void gemm_tile(const GemmArgs& args, int64_t first_row, int64_t panel) {
  int64_t a_rows[kRows];
  for (int m = 0; m < kRows; ++m)
    a_rows[m] = args.row_ids ? args.row_ids[first_row + m] : first_row + m;
  Vec::F sums[kRows][kPanels];
  for (int m = 0; m < kRows; ++m)
    for (int p = 0; p < kPanels; ++p) sums[m][p] = Vec::zero();
  if constexpr (Weights::kInteger)
    multiply_int<Weights, kRows, kPanels>(args, a_rows, panel, sums);
  else
    multiply_float<Weights, kRows, kPanels>(args, a_rows, panel, sums);

  for (int p = 0; p < kPanels; ++p) {
    const int64_t column = (panel + p) * kPanelRows;
    const int64_t left = args.b.n - column;
    const int width = left < kPanelRows ? static_cast<int>(left) : kPanelRows;
    for (int m = 0; m < kRows; ++m) {
      float* c = args.c + (first_row + m) * args.c_stride + column;
      Vec::F value = sums[m][p];
      if (args.bias) value = Vec::add(value, Vec::load_n(args.bias + column, width));
      if (args.accumulate) value = Vec::add(Vec::load_n(c, width), value);
      Vec::store_n(c, value, width);
    }
  }
}

// Rows [begin, end) of one strip of panels: whole tiles, then the remainder as one smaller tile.
template <class Weights, int kRows, int kPanels>
inline void gemm_strip(const GemmArgs& args, int64_t begin, int64_t end, int64_t panel) {
  for (; begin + kRows <= end; begin += kRows)
    gemm_tile<Weights, kRows, kPanels>(args, begin, panel);
  if constexpr (kRows > 1) {
    if (begin < end) gemm_strip<Weights, kRows - 1, kPanels>(args, begin, end, panel);
  }
}

template <class Weights>
inline void gemm(const GemmArgs& args) {
  // Rows go in blocks whose activations stay in half of a 512 KiB L2 while the weights stream past
  // once per block.
  constexpr int64_t kActBytes = 256 * 1024;
  const int64_t row_bytes = static_cast<int64_t>(args.b.k_padded) * (Weights::kInteger ? 1 : 4);
  int64_t block_rows = kActBytes / row_bytes / Weights::kRows * Weights::kRows;
  if (block_rows < Weights::kRows) block_rows = Weights::kRows;

  for (int64_t begin = args.rows.begin; begin < args.rows.end; begin += block_rows) {
    const int64_t end = begin + block_rows < args.rows.end ? begin + block_rows : args.rows.end;
    int64_t panel = args.panels.begin;
    if (end - begin == 1) {
      for (; panel + Weights::kGemvPanels <= args.panels.end; panel += Weights::kGemvPanels)
        gemm_tile<Weights, 1, Weights::kGemvPanels>(args, begin, panel);
    }
    for (; panel + Weights::kPanels <= args.panels.end; panel += Weights::kPanels)
      gemm_strip<Weights, Weights::kRows, Weights::kPanels>(args, begin, end, panel);
    for (; panel < args.panels.end; ++panel)
      gemm_strip<Weights, Weights::kRows, 1>(args, begin, end, panel);
  }
}

inline void gemm_float32(const GemmArgs& args) { gemm<Float32Panels>(args); }
inline void gemm_bf16(const GemmArgs& args) { gemm<Bf16Panels>(args); }
inline void gemm_int8(const GemmArgs& args) { gemm<Int8Panels>(args); }
inline void gemm_int4(const GemmArgs& args) { gemm<Int4Panels>(args); }
