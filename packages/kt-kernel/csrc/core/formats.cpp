// SPDX-License-Identifier: Apache-2.0
// Names and sizes of weight formats and activation rows. Their bytes are written by pack.cpp and
// prepare_rows.
#include "kt/formats.h"

#include <string>

#include "kt/check.h"
#include "kt/kernels.h"

namespace kt {
namespace {

constexpr const char* kNames[kNumFormats] = {"float32", "bf16", "int8", "int4"};

constexpr size_t cache_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

bool has_scales(Format format) { return format == Format::int8 || format == Format::int4; }

int64_t bits_per_weight(Format format) {
  switch (format) {
    case Format::float32:
      return 32;
    case Format::bf16:
      return 16;
    case Format::int8:
      return 8;
    case Format::int4:
      return 4;
  }
  return 0;
}

}  // namespace

const char* name_of(Format format) { return kNames[static_cast<int>(format)]; }

Format format_from_name(const char* op, const char* name) {
  std::string known;
  for (int i = 0; i < kNumFormats; ++i) {
    if (std::string(kNames[i]) == name) return static_cast<Format>(i);
    known += (i ? ", " : "") + std::string(kNames[i]);
  }
  fail(op, "format must be one of ", known, "; got ", name);
}

ActMode default_act_mode(Format format) {
  if (has_scales(format)) return ActMode::int8_g32;
  return format == Format::bf16 ? ActMode::bf16 : ActMode::f32;
}

size_t data_bytes(Format format, int n, int k) {
  const size_t weights = static_cast<size_t>(round_up(n, kPanelRows)) * round_up(k, kBlock);
  return cache_lines(weights * bits_per_weight(format) / 8);
}

size_t scale_bytes(Format format, int n, int k, int group_size) {
  if (!has_scales(format)) return 0;
  const size_t groups = (static_cast<size_t>(k) + group_size - 1) / group_size;
  return cache_lines(round_up(n, kPanelRows) * groups * sizeof(uint16_t));
}

PackedMatrix place_matrix(const char* op, Format format, int n, int k, int group_size,
                          const std::byte* at) {
  KT_CHECK(op, n > 0 && k > 0, "weight must have rows and columns; got (", n, ", ", k, ")");
  KT_CHECK(op, n <= kMaxExtent && k <= kMaxExtent, "weight must have at most ", kMaxExtent,
           " rows and columns; got (", n, ", ", k, ")");
  PackedMatrix matrix;
  matrix.format = format;
  matrix.n = n;
  matrix.k = k;
  matrix.n_padded = round_up(n, kPanelRows);
  matrix.k_padded = round_up(k, kBlock);
  matrix.data = at;
  if (has_scales(format)) {
    KT_CHECK(op, group_size == 32 || group_size == 64 || group_size == 128,
             "group_size must be 32, 64 or 128; got ", group_size);
    matrix.group_size = group_size;
    if (at != nullptr)
      matrix.scales = reinterpret_cast<const uint16_t*>(at + data_bytes(format, n, k));
  }
  return matrix;
}

size_t act_bytes(ActMode mode, int64_t rows, int k_padded) {
  const size_t elements = static_cast<size_t>(rows) * k_padded;
  if (mode != ActMode::int8_g32) return cache_lines(elements * sizeof(float));
  return cache_lines(elements) + cache_lines(elements / kBlock * sizeof(float)) +
         cache_lines(elements / kSumGroup * sizeof(int16_t));
}

ActRows act_rows(ActMode mode, int64_t rows, int k_padded, std::byte* at) {
  ActRows act{mode, k_padded, at, nullptr, nullptr};
  if (mode == ActMode::int8_g32) {
    const size_t elements = static_cast<size_t>(rows) * k_padded;
    std::byte* const scales = at + cache_lines(elements);
    act.scales = reinterpret_cast<float*>(scales);
    act.sums = reinterpret_cast<int16_t*>(scales + cache_lines(elements / kBlock * sizeof(float)));
  }
  return act;
}

}  // namespace kt
