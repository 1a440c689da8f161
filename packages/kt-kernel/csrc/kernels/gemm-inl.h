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
// less often. A few rows of floats without a scale keep their sums in registers from the first
// block to the last: for them one block, so that they ask for what follows in shares half as large,
// behind which their own loads wait (ADR 0006).
template <class Weights, int kRows>
constexpr int blocks_at_once() {
  if constexpr (Weights::kInteger || multiplies_tile<Weights, kRows>())
    return 1;
  else
    return kRows && !Weights::kScaled ? 1 : kFloatBlocks;
}

// `count` blocks, at most blocks_at_once, of all rows and panels, by the way that suits format and
// number of rows.
template <class Weights, int kRows, int kPanels>
inline void multiply_blocks(int count, const std::byte* const (&data)[kPanels],
                            const std::byte* const (&header)[kPanels], int sub, int64_t stride,
                            const ActTile& act, int64_t index, Vec::F (*sums)[kPanels]) {
  if constexpr (multiplies_tile<Weights, kRows>()) {
    Weights::multiply(data, header, sub, stride, act, index, sums);
  } else if constexpr (Weights::kInteger && !kRows) {
    multiply_many<Weights>(data, header, sub, stride, act, index, sums);
  } else if constexpr (Weights::kInteger) {
    unrolled<kPanels>([&](auto p) {
      multiply_few<Weights, kRows, p>(data[p], header[p], sub, stride, act, index, sums);
    });
  } else {
    multiply_float_blocks<Weights, kRows>(count, data, header, sub, stride, act, index, sums);
  }
}

// Panels are streams of a few pages each, too short for the hardware to run ahead in them. What few
// rows ask for: each of kStep panels, header and data as the one stretch of `bytes` that they are,
// kAhead before its use, and after its end its successor, kStep panels on. Into the second-level
// cache: the first has few requests on their way at a time, and on Zen 4 those alone take a core to
// no more than 12 of its 28 GB/s (ADR 0006).
template <int kStep>
class PanelsAhead {
 public:
  // `fresh`: no call for the panels before has asked for the start of these.
  PanelsAhead(const std::byte* panels, int64_t bytes, int64_t stride, bool fresh)
      : here_(reinterpret_cast<uintptr_t>(panels)),
        bytes_(round_up(bytes, kLine)),
        stride_(stride),
        distance_(std::min(kAhead, bytes_)),
        asked_(fresh ? 0 : distance_) {}

  // Of each panel, `used` bytes have been used.
  void advance(int64_t used) {
    for (; asked_ < used + distance_; asked_ += kLine) {
      // What follows may lie beyond the matrix: a number, not a pointer.
      const uintptr_t line = here_ + asked_ + (asked_ < bytes_ ? 0 : kStep * stride_ - bytes_);
      for (int panel = 0; panel < kStep; ++panel)
        __builtin_prefetch(reinterpret_cast<const void*>(line + panel * stride_), 0, 2);
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr int64_t kAhead = 4096;  // 1024 and 8192 gave less (ADR 0006)
  uintptr_t here_;
  int64_t bytes_, stride_, distance_, asked_;
};

// Many rows have time: the same block of the next panels goes into the second-level cache, the next
// block, which is there already, into the first.
template <int kStep>
inline void prefetch_ahead(const std::byte* data, int bytes, int64_t stride) {
  const auto here = reinterpret_cast<uintptr_t>(data);  // numbers, as above
  for (int line = 0; line < bytes; line += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(here + bytes + line), 0, 3);
    __builtin_prefetch(reinterpret_cast<const void*>(here + kStep * stride + line), 0, 2);
  }
}

// The outputs of kPanels vectors from panel `panel` on, for all rows of the tile.
template <class Weights, int kRows, int kPanels>
inline void gemm_panels(const GemmArgs& args, int64_t panel) {
  constexpr int kVectorPanels = Vec::kLanes / kPanelRows;
  constexpr int kStep = kPanels * kVectorPanels;  // panels of one call
  constexpr FormatInfo kInfo = Weights::kInfo;
  // Which asks for what follows by itself (FloatsAhead).
  constexpr bool kFloatTile = !kRows && !Weights::kInteger && !multiplies_tile<Weights, kRows>();
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
  const int64_t bytes = b.header_bytes + blocks * kInfo.data_bytes;
  PanelsAhead<kStep> ahead(header[0], bytes, stride, panel == args.panels.begin);
  const int64_t block_bytes = ceil_div(bytes, blocks);  // its part of the header included
  if constexpr (kRows > 0) ahead.advance(0);
  const auto multiply_next = [&](int sub, int count) {
    multiply_blocks<Weights, kRows>(count, data, header, sub, stride, args.a, block, sums);
    block += count;
    if constexpr (kRows > 0) ahead.advance(block * block_bytes);
    for (int p = 0; p < kPanels; ++p) {
      for (int other = 0; other < kVectorPanels && !kRows && !kFloatTile; ++other)
        prefetch_ahead<kStep>(data[p] + other * stride, count * kInfo.data_bytes, stride);
      data[p] += count * kInfo.data_bytes;
    }
  };
  const auto next_group = [&] {
    for (int p = 0; p < kPanels; ++p) header[p] += kInfo.header_bytes;
  };
  if constexpr (kInfo.group == kBlock) {
    for (; block < blocks; next_group()) multiply_next(0, 1);
  } else {
    constexpr int kAtOnce = blocks_at_once<Weights, kRows>();
    const int64_t per_group = b.group_size ? b.group_size / kBlock : blocks;
    for (int64_t end = per_group; block < blocks; end += per_group, next_group()) {
      const int64_t stop = std::min(end, blocks);
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
    if (args.a.rows == 1) return gemm_range<Weights, 1, 4 * kPanelRows / Vec::kLanes>(args);
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
