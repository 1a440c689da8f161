// SPDX-License-Identifier: Apache-2.0
// Weight formats and activation modes: what a packed matrix looks like in memory. Data layout only;
// the code that reads and writes a format's bytes is its struct in csrc/formats.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kt/rounding.h"

namespace kt {

// A panel is kPanelRows output rows (n), interleaved by 4 bytes of K, so that one 32-byte vector
// load holds the same 4 bytes of K of 8 outputs. 8 = 32-bit lanes of a 256-bit register; wider
// targets take two panels at once.
inline constexpr int kPanelRows = 8;
// A bundle is the panels that one row of activations meets at a time. They lie interleaved, so that
// it reads one stream of memory, which hardware fetches ahead by itself (ADR 0003).
inline constexpr int kBundlePanels = 4;
inline constexpr int kBundleRows = kBundlePanels * kPanelRows;
// K is padded to whole blocks of 32: the activation quantisation group, and a multiple of every
// interleave.
inline constexpr int kBlock = 32;
// Sums of int8 activations are kept per 16, the finest group of any weight format with an offset
// (Q6_K).
inline constexpr int kSumGroup = 16;

// The registry of weight formats: X(name, struct of csrc/formats). A new format is its struct and
// one line here.
#define KT_FORMATS(X) \
  X(float32, Float32) \
  X(bf16, Bf16)       \
  X(f16, F16)         \
  X(fp8, Fp8)         \
  X(int8, Int8)       \
  X(q8_0, Q8_0)       \
  X(q6_k, Q6_K)       \
  X(q5_k, Q5_K)       \
  X(q4_1, Q4_1)       \
  X(int4_zp, Int4Zp)  \
  X(q4_k, Q4_K)       \
  X(int4, Int4)       \
  X(q4_0, Q4_0)       \
  X(mxfp4, Mxfp4)

enum class Format : uint8_t {
#define KT_ENUM(name, Struct) name,
  KT_FORMATS(KT_ENUM)
#undef KT_ENUM
};
#define KT_COUNT(name, Struct) +1
inline constexpr int kNumFormats = 0 KT_FORMATS(KT_COUNT);
#undef KT_COUNT

// How activations meet a weight. Part of the op, never of the machine: results may not depend on
// the CPU.
enum class ActMode : uint8_t {
  f32,       // float rows as they are
  bf16,      // rounded to nearest-even bfloat16, products and sums in float
  int8_g32,  // symmetric int8 per 32 of K: scale = absmax / 127, round to nearest even
};

// The scales that come with weights which are already quantised.
enum class SourceScales : uint8_t {
  none,      // the weights carry them, or have none
  group,     // float32 [n][ceil(k / group_size)]
  tile,      // float32 [ceil(n / 128)][ceil(k / 128)]
  exponent,  // uint8 e8m0 [n][k / 32]: 2^(byte - 127)
};

// Version of the packed bytes, which Experts.save keeps: raised whenever those of any format
// change, because files outlive the build that wrote them.
inline constexpr int kLayoutVersion = 5;

// What is known of a format without touching a byte of it. Storage of one packed (N, K) matrix, N
// padded to 32, K to kBlock (or to the format's own super-block), pads zero, is [N/32] bundles,
// each padded to 64 bytes, of [ceil(K / group)] times
//
//   header [4 panels][header_bytes]
//   data   [group / run][4 panels][data_bytes * run / 32]
//
// so that a matrix is one stream of memory, in the order in which one row multiplies it.
struct FormatInfo {
  const char* name;
  ActMode act_mode;
  int data_bytes;    // of a block: 32 of K of 8 rows
  int run = kBlock;  // K of one panel that lie together, kBlock or fewer
  int header_bytes;  // of a group of K of 8 rows: scales, minima; of a bundle a multiple of 32
  int group;  // K that shares a header: 0 = none, kChosenGroup = the caller's group_size, else
              // fixed
  // Already quantised weights, as a checkpoint holds them: source_bytes for every source_k of a
  // row. 0: the format takes floats only.
  int source_k, source_bytes;
  SourceScales source_scales;
  bool source_zeros;   // uint8 [n][ceil(k / group_size)] zero points come with them
  bool takes_floats;   // can be made from float weights
  float weight_error;  // RMS rounding error / RMS weight, normal weights, smallest group
  const char* layout;  // for people

  // Whether values follow from a checkpoint's bytes alone.
  constexpr bool self_scaled() const { return source_scales == SourceScales::none; }
  // From panel to panel of a bundle.
  constexpr int run_bytes() const { return data_bytes * run / kBlock; }
  // From a panel's part of a block to its run with the k th of K.
  constexpr int run_offset(int k) const { return k / run * kBundlePanels * run_bytes(); }
  // Of a bundle: a block's data, and a group's header.
  constexpr int bundle_data_bytes() const { return kBundlePanels * data_bytes; }
  constexpr int bundle_header_bytes() const { return kBundlePanels * header_bytes; }
};
inline constexpr int kChosenGroup = -1;

struct PackedMatrix {
  Format format{};
  int n = 0, k = 0;  // logical shape: (out, in)
  int n_padded = 0, k_padded = 0;
  int group_size = 0;         // K that shares a header; 0: none
  int64_t bundle_bytes = 0;   // from one bundle to the next
  std::byte* data = nullptr;  // 64-byte aligned

  std::byte* bundle_of(int64_t panel) const { return data + panel / kBundlePanels * bundle_bytes; }
};

// The longest row or column of a matrix, and the most bytes of one allocation (a 47-bit address
// space): beyond any model, and small enough that sizes computed below it cannot wrap.
inline constexpr int kMaxExtent = 1 << 24;
inline constexpr size_t kMaxBytes = size_t{1} << 47;

const FormatInfo& info(Format format);
Format format_from_name(const char* op,
                        const char* name);  // throws invalid_argument listing the known names

// A matrix of this shape, its data not yet anywhere. group_size 0 is one group per row (scales per
// output channel); formats with a group of their own, or none, ignore it. Throws `[op] …` on a bad
// shape or group.
PackedMatrix shape_matrix(const char* op, Format format, int n, int k, int group_size);
size_t matrix_bytes(const PackedMatrix& matrix);  // a multiple of 64

}  // namespace kt
