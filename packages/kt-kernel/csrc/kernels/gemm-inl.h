// SPDX-License-Identifier: Apache-2.0
// The only matrix-multiply loop nest, for every weight format and number of rows. How a format's
// bytes become operands is csrc/formats; how a block is multiplied, block_int-inl.h and
// block_float-inl.h; who computes which range, csrc/core. Textual.
//
// For a few vectors of outputs (kLanes / 8 panels each) at a time, blocks of 32 of K ascend; a
// block's weights are unpacked once and meet all rows of the tile. Every output therefore sums K in
// one order (floats: k ascending in one chain, or with a scale in one per 64; integers: exact
// inside a block; blocks ascending in one chain), with the same operations whatever the number of
// rows: a row's bits do not depend on its company.
//
// kRows is the number of rows where it is a constant, whose sums stay in registers; 0: as many as
// the tile has, with sums in the first-level cache.
#include "kernels/constant-inl.h"

#include "kernels/block_float-inl.h"
#include "kernels/block_int-inl.h"

// Whether a target multiplies a whole tile by its own instructions, in a struct derived from the
// format's.
template <class Weights, int kRows>
constexpr bool multiplies_tile() {
  return !kRows && requires { Weights::kMultipliesTile; };
}

// Blocks that are multiplied together: some of floats, whose sums are loaded, stored and scaled
// less often.
template <class Weights, int kRows>
constexpr int blocks_at_once() {
  return Weights::kInteger || multiplies_tile<Weights, kRows>() ? 1 : kFloatBlocks;
}

// `count` blocks, at most blocks_at_once, of all rows and panels, by the way that suits format and
// number of rows.
template <class Weights, int kRows, int kPanels>
inline void multiply_blocks(int count, const std::byte* const (&data)[kPanels],
                            const std::byte* const (&header)[kPanels], int sub, const ActTile& act,
                            int64_t index, int64_t bundle, Vec::F (*sums)[kPanels]) {
  if constexpr (multiplies_tile<Weights, kRows>()) {
    Weights::multiply(data, header, sub, act, index, sums);
  } else if constexpr (Weights::kInteger && !kRows) {
    multiply_many<Weights>(data, header, sub, act, index, sums);
  } else if constexpr (Weights::kInteger) {
    unrolled<kPanels>([&](auto p) {
      multiply_few<Weights, kRows, p>(data[p], header[p], sub, act, index, sums);
    });
  } else {
    multiply_float_blocks<Weights, kRows>(count, data, header, sub, act, index, bundle, sums);
  }
}

// Few rows read bundles as one stream, as fast as hardware fetches ahead in it; what they would ask
// for themselves comes in its way (ADR 0006). Many rows have time, and some do not read in the
// order of memory: the same block of the next kStep panels goes into the second-level cache, the
// next block of these, which is there already, into the first.
template <class Weights, int kStep>
struct PanelsAhead {
  static constexpr FormatInfo kInfo = Weights::kInfo;
  static constexpr int kLine = 64;
  // From a block to the next, where it does not begin a group of several.
  static constexpr int kBlockBytes =
      kInfo.bundle_data_bytes() + (kInfo.group == kBlock ? kInfo.bundle_header_bytes() : 0);
  // Where blocks may begin in the middle of a line, one line more holds them.
  static constexpr int kBeyond = kInfo.bundle_header_bytes() % kLine ? kLine / 2 : 0;
  static_assert(kBundlePanels % kStep == 0);
  int64_t bundle;  // from one bundle to the next
  int64_t panels;  // from these panels to the next

  PanelsAhead(const PackedMatrix& b, int64_t panel)
      : bundle(b.bundle_bytes),
        panels(panel % kBundlePanels + kStep < kBundlePanels
                   ? kStep * kInfo.run_bytes()
                   : bundle - (kBundlePanels - kStep) * kInfo.run_bytes()) {}

  void data(const std::byte* here) const {
    for (int run = 0; run < kInfo.bundle_data_bytes(); run += kBundlePanels * kInfo.run_bytes()) {
      for (int line = 0; line < kStep * kInfo.run_bytes() + kBeyond; line += kLine) {
        prefetch<3>(here, kBlockBytes + run + line);
        prefetch<2>(here, panels + run + line);
      }
    }
  }
  void header(const std::byte* here) const {
    for (int line = 0; line < kInfo.bundle_header_bytes(); line += kLine) {
      if constexpr (kInfo.group == kBlock) prefetch<3>(here, kBlockBytes + line);
      prefetch<2>(here, bundle + line);
    }
  }

 private:
  // What follows may lie beyond the matrix: a number, not a pointer.
  template <int kLocality>
  static void prefetch(const std::byte* here, int64_t distance) {
    const auto at = reinterpret_cast<uintptr_t>(here) + distance;
    __builtin_prefetch(reinterpret_cast<const void*>(at), 0, kLocality);
  }
};

// Headers of several lines, before the data behind them: hardware loses a stream whose lines are
// not read in the order of memory.
template <class Weights>
inline void read_header_in_order(const std::byte* header) {
  for (int line = 0; line < Weights::kInfo.bundle_header_bytes(); line += 64)
    static_cast<void>(*static_cast<const volatile std::byte*>(header + line));
}

// The outputs of kPanels vectors from panel `panel` on, for all rows of the tile.
template <class Weights, int kRows, int kPanels>
inline void gemm_panels(const GemmArgs& args, int64_t panel) {
  constexpr int kVectorPanels = Vec::kLanes / kPanelRows;
  constexpr int kStep = kPanels * kVectorPanels;  // panels of one call
  constexpr FormatInfo kInfo = Weights::kInfo;
  static_assert(kInfo.bundle_header_bytes() % 32 == 0, "vectors of data would lie in two lines");
  const int rows = kRows ? kRows : args.a.rows;
  const PackedMatrix& b = args.b;
  const std::byte* header[kPanels];
  const std::byte* data[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    const int64_t first = panel + p * kVectorPanels, within = first % kBundlePanels;
    header[p] = b.bundle_of(first) + within * kInfo.header_bytes;
    data[p] = b.bundle_of(first) + kInfo.bundle_header_bytes() + within * kInfo.run_bytes();
  }
  Vec::F sums[kRows ? kRows : kTileRows][kPanels];
  for (int row = 0; row < rows; ++row)
    for (int p = 0; p < kPanels; ++p) sums[row][p] = Vec::zero();

  const int64_t blocks = b.k_padded / kBlock;
  int64_t block = 0;
  // Floats ask for what follows by themselves (FloatsAhead).
  constexpr bool kAsks = !kRows && (Weights::kInteger || multiplies_tile<Weights, kRows>());
  const bool asks = rows > kFewRows;
  const auto multiply_next = [&](int sub, int count) {
    multiply_blocks<Weights, kRows>(count, data, header, sub, args.a, block, b.bundle_bytes, sums);
    block += count;
    if constexpr (kAsks)
      if (asks) PanelsAhead<Weights, kStep>(b, panel).data(data[0]);
    for (int p = 0; p < kPanels; ++p) data[p] += count * kInfo.bundle_data_bytes();
  };
  const auto next_group = [&](int64_t count) {
    if constexpr (kAsks)
      if (asks) PanelsAhead<Weights, kStep>(b, panel).header(header[0]);
    for (int p = 0; p < kPanels; ++p) {
      header[p] += kInfo.bundle_header_bytes() + count * kInfo.bundle_data_bytes();
      data[p] += kInfo.bundle_header_bytes();
    }
  };
  if constexpr (kInfo.group == kBlock) {
    for (; block < blocks; next_group(1)) multiply_next(0, 1);
  } else {
    constexpr int kAtOnce = blocks_at_once<Weights, kRows>();
    const int64_t per_group = b.group_size ? b.group_size / kBlock : blocks;
    for (int64_t end = per_group; block < blocks; end += per_group, next_group(per_group)) {
      const int64_t stop = std::min(end, blocks);
      if constexpr (kRows > 0 && kInfo.group > kBlock) read_header_in_order<Weights>(header[0]);
      for (int sub = 0; block < stop; sub += kAtOnce)
        multiply_next(
            sub, kAtOnce == 1 ? 1 : static_cast<int>(std::min<int64_t>(kAtOnce, stop - block)));
    }
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

// Ranges are whole bundles.
template <class Weights, int kRows, int kPanels>
inline void gemm_range(const GemmArgs& args) {
  constexpr int kStep = Vec::kLanes / kPanelRows;
  int64_t panel = args.panels.begin;
  for (; panel + kStep * kPanels <= args.panels.end; panel += kStep * kPanels)
    gemm_panels<Weights, kRows, kPanels>(args, panel);
  if constexpr (kStep * kPanels > kBundlePanels) {
    for (; panel < args.panels.end; panel += kBundlePanels)
      gemm_panels<Weights, kRows, kBundlePanels / kStep>(args, panel);
  }
}

template <class Weights>
inline void gemm(const GemmArgs& args) {
  constexpr int kBundle = kBundleRows / Vec::kLanes;  // in vectors
  if constexpr (Weights::kInteger) {
    if (args.a.biased()) return gemm_range<Weights, 0, 2>(args);
    with_rows<kFewRows>(args.a.rows, [&](auto rows) { gemm_range<Weights, rows, kBundle>(args); });
  } else {
    if (args.a.rows > kFloatRows) return gemm_range<Weights, 0, 4>(args);
    with_rows<kFloatRows>(args.a.rows,
                          [&](auto rows) { gemm_range<Weights, rows, kBundle>(args); });
  }
}

template <class Weights>
inline void pack(const PackArgs& args) {
  const PackedMatrix& into = args.into;
  const int64_t per_group = (into.group_size ? into.group_size : into.k_padded) / kBlock;
  for (int64_t panel = args.panels.begin; panel < args.panels.end; ++panel) {
    const auto within = static_cast<int>(panel % kBundlePanels);
    for (int lane = 0; lane < kPanelRows; ++lane) {
      const int64_t row = panel * kPanelRows + lane;
      Weights::pack_row(args, row < into.n ? row : -1,
                        {into.bundle_of(panel), within, lane, Weights::kInfo, per_group});
    }
  }
}

#define KT_DEFINE(name, Struct)                                         \
  inline void gemm_##name(const GemmArgs& args) { gemm<Struct>(args); } \
  inline void pack_##name(const PackArgs& args) { pack<Struct>(args); }
KT_FORMATS(KT_DEFINE)
#undef KT_DEFINE
