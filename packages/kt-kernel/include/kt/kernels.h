// SPDX-License-Identifier: Apache-2.0
// The only seam between ISA-free code (csrc/core) and targets (csrc/targets): one function pointer
// per kernel. Kernels are pure functions over a row/column range: they never allocate, lock, log,
// throw or read the environment; ranges are chosen by csrc/core, shapes were validated by
// csrc/python, and ids, positions and pages by csrc/core when the op runs. As a caller may change
// those arrays meanwhile, kernels check again what they index with, and answer NaN or write
// nothing.
#pragma once

#include <cstdint>

#include "kt/attention.h"
#include "kt/formats.h"

namespace kt {

enum class DType : uint8_t { f32, bf16, f16 };

struct Range {
  int64_t begin, end;
};

// Rows of a gemm that one unpacked block of weights meets: enough to make the unpacking cheap, few
// enough that their activations (96 KiB at K = 2048) stay in the second-level cache. 512 tokens
// with 8 of 128 experts are 32 +- 6 rows for each: 32 cut half of them in two, and unpacked their
// weights twice.
inline constexpr int kTileRows = 48;

// Up to this many rows are multiplied with a block's weights as they are unpacked. With more of
// them it pays to prepare the weights first and to make the activations the unsigned operand of the
// instructions that multiply bytes; tiles of more rows store them 128 higher for that.
inline constexpr int kFewRows = 4;

// At most kTileRows activation rows in one ActMode, K padded with zeros to kBlock, ordered as a
// gemm reads them. bf16 rows are floats that bf16 can hold. A tile of one row is a plain row.
struct ActTile {
  ActMode mode{};
  int rows = 0;
  int k_padded = 0;
  void* data = nullptr;          // [k_padded / 32][rows][32] float | float | int8, uint8 if biased
  float* scales = nullptr;       // int8_g32: [k_padded / 32][rows]
  float* scaled_sums = nullptr;  // int8_g32: [k_padded / 32][rows], scale * sum
  int16_t* sums = nullptr;       // int8_g32: [k_padded / 32][rows][2], per 16

  bool biased() const { return mode == ActMode::int8_g32 && rows > kFewRows; }
};

// Bytes of one row in a tile, a multiple of 64: a tile of n rows takes at most n of it.
constexpr size_t act_row_bytes(ActMode mode, int k_padded) {
  const size_t k = static_cast<size_t>(k_padded), blocks = k / kBlock;
  const size_t bytes = mode == ActMode::int8_g32
                           ? k + blocks * (2 * sizeof(float) + 2 * sizeof(int16_t))
                           : k * sizeof(float);
  return (bytes + 63) / 64 * 64;
}

// The tile whose bytes begin at `at`, 64-byte aligned.
inline ActTile act_tile(ActMode mode, int rows, int k_padded, std::byte* at) {
  ActTile tile{mode, rows, k_padded, at, nullptr, nullptr, nullptr};
  if (mode == ActMode::int8_g32) {
    const size_t elements = static_cast<size_t>(rows) * k_padded;
    tile.scales = reinterpret_cast<float*>(at + elements);
    tile.scaled_sums = tile.scales + elements / kBlock;
    tile.sums = reinterpret_cast<int16_t*>(tile.scaled_sums + elements / kBlock);
  }
  return tile;
}

// Convert rows of x (row stride `stride` elements) into rows `rows` of `out`, blocks `blocks` of K:
// x points at the first of these rows and blocks, and has `columns` of them. A non-finite int8_g32
// block gets a NaN scale, so that the whole output row becomes NaN and no other row notices.
struct PrepareRowsArgs {
  const void* x;  // [rows][stride] of dtype
  DType dtype;
  int64_t stride;
  int64_t columns;
  ActTile out;
  Range rows;
  Range blocks;
};

// out row i = prepared row ids[i] of `rows`, tiles of one row act_row_bytes() apart.
struct GatherRowsArgs {
  std::byte* rows;
  const int32_t* ids;  // [out.rows]
  ActTile out;

  ActTile row_of(int32_t id) const {
    const size_t bytes = act_row_bytes(out.mode, out.k_padded);
    return act_tile(out.mode, 1, out.k_padded, rows + static_cast<size_t>(id) * bytes);
  }
};

// c[m][n] (+)= bias[n] + sum_k a[m][k] * b[n][k], for all rows of a and the output rows of panels.
// K is summed in one fixed order per output, so a row does not depend on its neighbours or on their
// number.
struct GemmArgs {
  ActTile a;
  PackedMatrix b;
  const float* bias;  // [n] or null
  float* c;           // [a.rows][c_stride], column 0 = the first output of panels
  int64_t c_stride;
  bool accumulate;
  Range panels;  // of kPanelRows outputs, in whole bundles
};

// Rows of a weight matrix become panels. Weights are floats, or already quantised as the format's
// FormatInfo says.
struct PackArgs {
  const void* weight;  // floats [n][k] of dtype; quantised [n][k / source_k][source_bytes]
  DType dtype;
  bool quantized;
  const void* scales;    // as FormatInfo::source_scales, or null
  const uint8_t* zeros;  // if FormatInfo::source_zeros
  PackedMatrix into;
  Range panels;
};

// h = f(gate, up) of an MLP, with L = limit, clamp(x) = min(max(x, -L), L), silu(x) = x sigmoid(x):
enum class ActivationKind : uint8_t {
  silu,               // silu(gate) * up
  silu_clamped,       // silu(min(gate, L)) * clamp(up)
  silu_post_clamped,  // min(silu(gate), L) * clamp(up)
  swigluoai,          // m * sigmoid(alpha * m) * (clamp(up) + 1) with m = min(gate, L)
  gelu,               // gelu(gate) * up, tanh approximation
  relu2,              // max(up, 0)^2: no gate
};
struct Activation {
  ActivationKind kind = ActivationKind::silu;
  float limit = 0;  // of the kinds that have one
  float alpha = 0;
  bool gated() const { return kind != ActivationKind::relu2; }
};

// out = activation(gate, up), elementwise over a [rows] x [columns] block; out may be gate or up.
// A NaN in either gives NaN: no clamp swallows it.
struct ActivateArgs {
  const float* gate;  // null if not gated
  const float* up;
  float* out;
  int64_t stride;  // elements, the same for all three
  Activation activation;
  Range rows;
  Range columns;
};

struct AddArgs {  // out = x + y over a flat range; out may alias either
  const float* x;
  const float* y;
  float* out;
  Range elements;
};

// out[t] (+)= sum over slots s with ids[t][s] >= 0, in slot order, of weights[t][s] *
// y[slot_row[t][s]].
struct CombineArgs {
  const float* y;  // [*][y_stride] one row per (token, slot), padded to whole vectors
  int64_t y_stride;
  const int32_t* slot_row;  // [tokens][top_k]; < 0: skipped
  const float* weights;     // [tokens][top_k]
  int top_k;
  int hidden;
  void* out;  // [tokens][hidden] of dtype
  DType dtype;
  bool accumulate;
  Range tokens;
};

// out[t] = weight[ids[t]] as float; ids outside [0, vocab_size) give a NaN row. Rows are as a
// checkpoint holds them: floats, or blocks with scales of their own (FormatInfo::self_scaled).
struct EmbeddingArgs {
  const int32_t* ids;
  const void*
      weight;  // [vocab_size][hidden] floats, or [vocab_size][hidden / source_k][source_bytes]
  Format format;
  int64_t vocab_size;
  int hidden;
  float* out;
  Range tokens;
};

struct RmsNormArgs {  // out = x / sqrt(mean(x^2) + eps) * weight, per row; out may alias x
  const float* x;
  const float* weight;
  float* out;
  int columns;
  float eps;
  Range rows;
};

// Rotate the first rotary_dim of every head (rotate-half pairs i, i + rotary_dim/2): q in place, k
// into its cache slot together with v. slot = page * page_size + offset; slot < 0 writes nothing.
struct RopeWriteKvArgs {
  float* q;        // [tokens][num_heads][head_dim]
  const float* k;  // [tokens][num_kv_heads][head_dim]
  const float* v;
  const float* cos;  // [max_positions][rotary_dim / 2]
  const float* sin;
  const int32_t* positions;  // [tokens]
  const int32_t* slot_mapping;
  void* k_cache;  // [num_pages][page_size][num_kv_heads][head_dim] of kv_dtype
  void* v_cache;
  float* k_scales;  // int8 only: [num_pages][page_size][num_kv_heads], absmax / 127 of the head
  float* v_scales;
  KvDType kv_dtype;
  int num_heads, num_kv_heads, head_dim, rotary_dim;
  int64_t num_slots;      // num_pages * page_size; slots at or beyond it write nothing
  int64_t max_positions;  // positions outside the table give NaN, never a stray read
  Range tokens;
};

// How the experts of a token and their weights follow from its router logits.
enum class Score : uint8_t { softmax, sigmoid, sqrtsoftplus, sparsemixer };  // per expert, or slot
enum class SelectOn : uint8_t { score, logit, hash };
enum class GroupScore : uint8_t { max, top2_sum };  // of its experts' values
enum class Norm : uint8_t { none, sum, clamp };     // w, w / (sum + eps), w / max(sum, eps)
struct Router {
  Score score;
  SelectOn select_on;
  int num_groups, topk_groups;
  GroupScore group_score;
  Norm norm;
  float norm_eps, scale;
  float jitter_eps;  // sparsemixer
};

// The top_k experts of each row (ties: lower id first): those with the largest score or logit, plus
// bias, within the best topk_groups of num_groups groups of neighbours; or those that the hash
// table names for the row's token. Weights are the scores of the chosen, normalised, times scale.
// Needs num_experts <= kMaxRoutedExperts. A row with a NaN gets NaN weights and valid ids.
inline constexpr int kMaxRoutedExperts =
    1024;  // the kernel keeps rows of them on the stack; the field is at 768
struct RouteArgs {
  const float* logits;        // [rows][num_experts]
  const float* bias;          // [num_experts] or null
  const int32_t* input_ids;   // [rows], hash only
  const int32_t* hash_table;  // [vocab_size][top_k], hash only
  int64_t vocab_size;
  Router router;
  int num_experts, top_k;
  int32_t* topk_ids;    // [rows][top_k]
  float* topk_weights;  // [rows][top_k]
  Range rows;           // live rows
};

// X(kernel, ArgsType): every entry of the table, listed once for the table, its tests and
// `--matrix`.
#define KT_KERNELS(X)               \
  X(prepare_rows, PrepareRowsArgs)  \
  X(gather_rows, GatherRowsArgs)    \
  X(activate, ActivateArgs)         \
  X(add, AddArgs)                   \
  X(combine, CombineArgs)           \
  X(embedding, EmbeddingArgs)       \
  X(rms_norm, RmsNormArgs)          \
  X(rope_write_kv, RopeWriteKvArgs) \
  X(attention, AttentionArgs)       \
  X(merge_attention, AttentionArgs) \
  X(route, RouteArgs)

struct Probes;  // kt/probe.h

struct Kernels {
  const char* target;  // "scalar", "avx2", …
#define KT_FIELD(kernel, Args) void (*kernel)(const Args&) = nullptr;
  KT_KERNELS(KT_FIELD)
#undef KT_FIELD
  void (*gemm[kNumFormats])(const GemmArgs&) = {};
  void (*pack[kNumFormats])(const PackArgs&) = {};
  const Probes* probes = nullptr;  // what measures this target, no op
};

}  // namespace kt
