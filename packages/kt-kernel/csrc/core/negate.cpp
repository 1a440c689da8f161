// SPDX-License-Identifier: Apache-2.0
// What "negates what it writes" means for each kernel: the sign bit of its output within the range
// it was given.
#include "negate.h"

#include <algorithm>
#include <atomic>

namespace kt {
namespace {

std::atomic<const Kernels*> g_base{nullptr};  // whose kernels the wrappers below call

void flip(float* x, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) x[i] = -x[i];
}

void flip_rows(float* x, Range rows, int64_t columns) {
  flip(x, rows.begin * columns, rows.end * columns);
}

// The blocks of one row of a tile.
void flip_row(const ActTile& tile, int64_t row, Range blocks) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t at = block * tile.rows + row;
    if (tile.mode == ActMode::int8_g32) {
      flip(tile.scales, at, at + 1);
      flip(tile.scaled_sums, at, at + 1);
    } else {
      flip(static_cast<float*>(tile.data), at * kBlock, (at + 1) * kBlock);
    }
  }
}

void negate_output(const PrepareRowsArgs& args) {
  for (int64_t row = args.rows.begin; row < args.rows.end; ++row)
    flip_row(args.out, row, args.blocks);
}

void negate_output(const GatherRowsArgs& args) {
  for (int64_t row = 0; row < args.out.rows; ++row)
    flip_row(args.out, row, {0, args.out.k_padded / kBlock});
}

void negate_output(const GemmArgs& args) {
  const int64_t begin = args.panels.begin * kPanelRows;
  const int64_t end = std::min<int64_t>(args.panels.end * kPanelRows, args.b.n);
  for (int64_t row = 0; row < args.a.rows; ++row)
    flip(args.c + row * args.c_stride, 0, end - begin);
}

void negate_output(
    const PackArgs& args) {  // every stored byte; what they decode to has no sign bit
  std::byte* const begin = args.into.bundle_of(args.panels.begin);
  std::byte* const end = args.into.bundle_of(args.panels.end);
  std::for_each(begin, end, [](std::byte& byte) { byte = ~byte; });
}

void negate_output(const ActivateArgs& args) {
  for (int64_t row = args.rows.begin; row < args.rows.end; ++row)
    flip(args.out + row * args.stride, args.columns.begin, args.columns.end);
}

void negate_output(const AddArgs& args) { flip(args.out, args.elements.begin, args.elements.end); }

void negate_output(const CombineArgs& args) {
  if (args.dtype == DType::f32) {
    flip_rows(static_cast<float*>(args.out), args.tokens, args.hidden);
    return;
  }
  auto* const out = static_cast<uint16_t*>(args.out);
  for (int64_t i = args.tokens.begin * args.hidden; i < args.tokens.end * args.hidden; ++i)
    out[i] ^= 0x8000;
}

void negate_output(const EmbeddingArgs& args) { flip_rows(args.out, args.tokens, args.hidden); }

void negate_output(const RmsNormArgs& args) { flip_rows(args.out, args.rows, args.columns); }

// The queries; the cache keeps what was written.
void negate_output(const RopeWriteKvArgs& args) {
  flip_rows(args.q, args.tokens, int64_t{args.num_heads} * args.head_dim);
}

// The sums of a split, or the output: what merge_attention writes has no partials of its own then.
void negate_output(const AttentionArgs& args) {
  if (args.partials != nullptr && args.end_split == args.first_split + 1)
    return flip(args.partials, 0, args.heads() * args.head_pad());
  for (int64_t row = args.tile.first_row; row < args.tile.first_row + args.tile.rows; ++row) {
    const int64_t head = row * args.num_heads + int64_t{args.kv_head} * args.group();
    flip(args.out, head * args.head_dim, (head + args.group()) * args.head_dim);
  }
}

void negate_output(const RouteArgs& args) {  // the weights; a negated id would be no id
  flip_rows(args.topk_weights, args.rows, args.top_k);
}

template <auto kKernel, class Args>
void negated(const Args& args) {
  (g_base.load()->*kKernel)(args);
  negate_output(args);
}

template <auto kTable, Format kFormat, class Args>
void negated_format(const Args& args) {
  (g_base.load()->*kTable)[static_cast<int>(kFormat)](args);
  negate_output(args);
}

}  // namespace

bool negated_copy(const Kernels& base, const std::string& kernel, Kernels* copy) {
  *copy = base;
#define KT_NEGATE(name, Args)                    \
  if (kernel == #name) {                         \
    g_base = &base;                              \
    copy->name = &negated<&Kernels::name, Args>; \
    return true;                                 \
  }
  KT_KERNELS(KT_NEGATE)
#undef KT_NEGATE
#define KT_NEGATE(name, Struct)                                  \
  if (kernel == "gemm_" #name) {                                 \
    g_base = &base;                                              \
    copy->gemm[static_cast<int>(Format::name)] =                 \
        &negated_format<&Kernels::gemm, Format::name, GemmArgs>; \
    return true;                                                 \
  }                                                              \
  if (kernel == "pack_" #name) {                                 \
    g_base = &base;                                              \
    copy->pack[static_cast<int>(Format::name)] =                 \
        &negated_format<&Kernels::pack, Format::name, PackArgs>; \
    return true;                                                 \
  }
  KT_FORMATS(KT_NEGATE)
#undef KT_NEGATE
  return false;
}

}  // namespace kt
