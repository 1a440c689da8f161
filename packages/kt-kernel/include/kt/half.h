// SPDX-License-Identifier: Apache-2.0
// One bfloat16 or IEEE half at a time, portable, as bit patterns in uint16_t. Vectors of them are
// csrc/simd's business.
#pragma once

#include <cstdint>
#include <cstring>

namespace kt {

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bf16_to_float(uint16_t x) { return float_from_bits(static_cast<uint32_t>(x) << 16); }

inline uint16_t float_to_bf16(float x) {  // nearest even; every NaN becomes 0x7fc0
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float f16_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t rest = half & 0x7fff;
  if (rest < 0x0400) {  // zero and subnormal: a multiple of 2^-24, exact in float
    return float_from_bits(bits_of(static_cast<float>(rest) * 0x1p-24f) | sign);
  }
  uint32_t bits = (rest << 13) + (112u << 23);  // exponent bias 15 -> 127
  if (rest >= 0x7c00) bits += 112u << 23;       // infinity and NaN: 31 -> 255
  return float_from_bits(bits | sign);
}

inline uint16_t float_to_f16(float x) {  // nearest even; overflow becomes infinity
  const uint32_t bits = bits_of(x) & 0x7fffffff;
  const uint16_t sign = static_cast<uint16_t>((bits_of(x) >> 16) & 0x8000);
  const float magnitude = float_from_bits(bits);
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 65520.0f) return sign | 0x7c00;  // halfway above the largest half, 65504
  if (magnitude <
      0x1p-14f) {  // subnormal: adding 0.5, whose ulp is 2^-24, rounds where a half would
    return sign | static_cast<uint16_t>(bits_of(magnitude + 0.5f) - bits_of(0.5f));
  }
  return sign | static_cast<uint16_t>((bits + 0xfff + ((bits >> 13) & 1) - (112u << 23)) >> 13);
}

}  // namespace kt
