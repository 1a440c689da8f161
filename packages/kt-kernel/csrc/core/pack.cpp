// SPDX-License-Identifier: Apache-2.0
// Packing: rows of a matrix become panels of a weight format. The layout is documented in
// kt/formats.h; every format is a row of 32-bit words there, so a row is encoded into words first
// and the words interleaved by 8 after.
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kt/experts.h"
#include "kt/half.h"

namespace kt {
namespace {

constexpr uint16_t kNan = 0x7fc0;  // of bf16

void load_row(const void* weight, DType dtype, int64_t row, int k, float* out) {
  const int64_t at = row * k;
  switch (dtype) {
    case DType::f32:
      std::memcpy(out, static_cast<const float*>(weight) + at, sizeof(float) * k);
      return;
    case DType::bf16:
      for (int i = 0; i < k; ++i)
        out[i] = bf16_to_float(static_cast<const uint16_t*>(weight)[at + i]);
      return;
    case DType::f16:
      for (int i = 0; i < k; ++i)
        out[i] = f16_to_float(static_cast<const uint16_t*>(weight)[at + i]);
      return;
  }
}

// Symmetric quantisation of one group to [-limit, limit]. Returns the scale as bf16, the very value
// q was computed with. A non-finite weight makes the scale NaN: its outputs must not look healthy.
// Both loops are written so that the compiler can vectorise them: magnitudes compare as integers,
// and adding 1.5 * 2^23 rounds to nearest even.
uint16_t quantize_group(const float* x, int count, int limit, int8_t* q) {
  uint32_t top = 0;
  for (int i = 0; i < count; ++i) top = std::max(top, bits_of(x[i]) & 0x7fffffff);
  const float absmax = float_from_bits(top);
  const bool finite = top < bits_of(std::numeric_limits<float>::infinity());
  const float bound = static_cast<float>(limit);
  const uint16_t scale = finite ? float_to_bf16(absmax / bound) : kNan;
  const float inverse = 1.0f / bf16_to_float(scale);
  if (!finite || inverse > std::numeric_limits<float>::max()) {  // too small to divide by: zeros
    std::fill(q, q + count, int8_t{0});
    return finite ? 0 : scale;
  }
  constexpr float kMagic = 12582912.0f;
  for (int i = 0; i < count; ++i) {
    float v = x[i] * inverse;
    v = v > bound ? bound : v;  // a scale rounded down can push |x| / scale past the limit
    v = v < -bound ? -bound : v;
    q[i] = static_cast<int8_t>(static_cast<int32_t>((v + kMagic) - kMagic));
  }
  return scale;
}

class RowEncoder {
 public:
  explicit RowEncoder(const PackedMatrix& matrix)
      : matrix_(matrix), row_(matrix.k_padded), q_(matrix.k_padded), words_(matrix.k_padded) {}

  int num_words() const {
    constexpr int kPerWord[kNumFormats] = {1, 2, 4, 8};
    return matrix_.k_padded / kPerWord[static_cast<int>(matrix_.format)];
  }

  // The words of one row (row < 0: a padding row of zeros); scales, if any, go to every 8th element
  // of `scales`.
  const uint32_t* encode(const void* weight, DType dtype, int64_t row, uint16_t* scales) {
    std::fill(row_.begin(), row_.end(), 0.0f);
    if (row >= 0) load_row(weight, dtype, row, matrix_.k, row_.data());
    switch (matrix_.format) {
      case Format::float32:
        for (int i = 0; i < num_words(); ++i) words_[i] = bits_of(row_[i]);
        break;
      case Format::bf16:
        for (int i = 0; i < num_words(); ++i)
          words_[i] = float_to_bf16(row_[2 * i]) |
                      static_cast<uint32_t>(float_to_bf16(row_[2 * i + 1])) << 16;
        break;
      case Format::int8:
        quantize(127, scales);
        std::memcpy(words_.data(), q_.data(), q_.size());
        break;
      case Format::int4: {
        quantize(7, scales);
        auto* const bytes = reinterpret_cast<uint8_t*>(words_.data());
        for (int block = 0; block < matrix_.k_padded; block += kBlock)
          for (int i = 0; i < kBlock / 2; ++i)  // byte 4 * j + b of the block: element i, i + 16
            bytes[block / 2 + i] =
                static_cast<uint8_t>((q_[block + i] + 8) | (q_[block + 16 + i] + 8) << 4);
        break;
      }
    }
    return words_.data();
  }

 private:
  void quantize(int limit, uint16_t* scales) {
    const int group_size = matrix_.group_size;
    std::fill(q_.begin(), q_.end(), int8_t{0});
    for (int begin = 0, group = 0; begin < matrix_.k; begin += group_size, ++group) {
      const int count = std::min(group_size, matrix_.k - begin);
      scales[group * kPanelRows] = quantize_group(&row_[begin], count, limit, &q_[begin]);
    }
  }

  const PackedMatrix& matrix_;
  std::vector<float> row_;
  std::vector<int8_t> q_;
  std::vector<uint32_t> words_;
};

}  // namespace

void pack_rows(const void* weight, DType dtype, const PackedMatrix& into, Range rows) {
  RowEncoder encoder(into);
  const int64_t num_words = encoder.num_words();
  const int64_t num_groups = into.group_size ? (into.k + into.group_size - 1) / into.group_size : 0;
  auto* const words = reinterpret_cast<uint32_t*>(const_cast<std::byte*>(into.data));
  auto* const scales = const_cast<uint16_t*>(into.scales);
  const int64_t end = rows.end < into.n ? rows.end : into.n_padded;  // the last range pads
  for (int64_t row = rows.begin; row < end; ++row) {
    const int64_t panel = row / kPanelRows, lane = row % kPanelRows;
    uint16_t* const row_scales = scales + panel * num_groups * kPanelRows + lane;
    const uint32_t* encoded = encoder.encode(weight, dtype, row < into.n ? row : -1, row_scales);
    uint32_t* const to = words + panel * num_words * kPanelRows + lane;
    for (int64_t i = 0; i < num_words; ++i) to[i * kPanelRows] = encoded[i];
  }
}

}  // namespace kt
