// SPDX-License-Identifier: Apache-2.0
// Weight formats and activation modes: what a packed matrix and a row of activations look like in
// memory. Data layout only; the code that reads it is csrc/kernels/dequant-inl.h, the code that
// writes it csrc/core/pack.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kt {

// A panel is kPanelRows output rows (n), interleaved by 4 bytes of K, so that one 32-byte vector
// load holds the same 4 bytes of K of 8 outputs. 8 = 32-bit lanes of a 256-bit register; wider
// targets take two panels at once.
inline constexpr int kPanelRows = 8;
// K is padded to whole blocks of 32: the activation quantisation group, and a multiple of every
// interleave.
inline constexpr int kBlock = 32;
// Sums of int8 activations are kept per 16, the finest group of any weight format with an offset
// (Q6_K).
inline constexpr int kSumGroup = 16;

enum class Format : uint8_t { float32, bf16, int8, int4 };
inline constexpr int kNumFormats = 4;

// How activations meet a weight. Part of the op, never of the machine: results may not depend on
// the CPU.
enum class ActMode : uint8_t {
  f32,       // float rows as they are
  bf16,      // rounded to nearest-even bfloat16, products and sums in float
  int8_g32,  // symmetric int8 per 32 of K: scale = absmax / 127, round to nearest even
};

// Storage of one packed (N, K) matrix, N padded to kPanelRows, K padded to kBlock, pads zero:
//
//   float32  float   data[N/8][K][8]
//   bf16     uint16  data[N/8][K/2][8][2]
//   int8     int8    data[N/8][K/4][8][4]       value = scale * q,       q in [-127, 127]
//   int4     uint8   data[N/8][K/32][4][8][4]   value = scale * (q - 8), q in [1, 15], pads 8
//   scales   bf16    scales[N/8][ceil(K/group_size)][8]
//
// int4: byte [j][row][b] of a block of 32 holds element 4*j + b in its low nibble and the one 16
// further on in its high nibble, so that masking (and shifting by 4) yields int8 panels without a
// shuffle. Scales: absmax / 127 or absmax / 7, rounded to bf16 before q is computed, so that
// rounding the scale adds no bias.
struct PackedMatrix {
  Format format{};
  int n = 0, k = 0;  // logical shape: (out, in)
  int n_padded = 0, k_padded = 0;
  int group_size = 0;                // 0 for the float formats, else 32, 64 or 128
  const std::byte* data = nullptr;   // 64-byte aligned
  const uint16_t* scales = nullptr;  // bf16, or null
};

// The longest row or column of a matrix, and the most bytes of one allocation (a 47-bit address
// space): beyond any model, and small enough that sizes computed below it cannot wrap.
inline constexpr int kMaxExtent = 1 << 24;
inline constexpr size_t kMaxBytes = size_t{1} << 47;

constexpr int round_up(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

const char* name_of(Format format);
Format format_from_name(const char* op,
                        const char* name);  // throws invalid_argument listing the known names
ActMode default_act_mode(Format format);    // float32: f32, bf16: bf16, int8 and int4: int8_g32
size_t data_bytes(Format format, int n, int k);  // of PackedMatrix::data, rounded up to 64
size_t scale_bytes(Format format, int n, int k,
                   int group_size);  // of PackedMatrix::scales, rounded up to 64

// A matrix of this shape whose data lies at `at` and whose scales follow it. Throws `[op] …` on a
// bad shape or group.
PackedMatrix place_matrix(const char* op, Format format, int n, int k, int group_size,
                          const std::byte* at);

}  // namespace kt
