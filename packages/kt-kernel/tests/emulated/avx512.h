// SPDX-License-Identifier: Apache-2.0
// AVX-512 and AVX-VNNI intrinsics as SIMDe's portable functions, for compiling the targets that use
// them without the instructions; and those that cmeel-simde 0.8.2 lacks or has wrong, written after
// Intel's intrinsics guide. Included before everything else. Not part of the package.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <cstdint>
#include <cstring>

namespace emulated {

template <class To, class From>
inline To bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T, int kCount>
struct Lanes {
  T lane[kCount];
};

// The 16 lanes of type From as lanes of type To: wider ones extended by their sign, if they have
// one.
template <class To, class From, class Register, class Source>
inline Register convert(Source x) {
  const auto from = bits_of<Lanes<From, 16>>(x);
  Lanes<To, 16> to;
  for (int i = 0; i < 16; ++i) to.lane[i] = static_cast<To>(from.lane[i]);
  return bits_of<Register>(to);
}

// SIMDe's masked load and store touch all lanes; the store writes zeros over what it must leave.
inline __m512 load_lanes(uint32_t mask, const void* p) {
  float lanes[16] = {};
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) std::memcpy(lanes + i, static_cast<const float*>(p) + i, sizeof(float));
  return bits_of<__m512>(lanes);
}

inline void store_lanes(void* p, uint32_t mask, __m512 x) {
  const auto from = bits_of<Lanes<float, 16>>(x);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) std::memcpy(static_cast<float*>(p) + i, from.lane + i, sizeof(float));
}

}  // namespace emulated

#undef _mm512_maskz_loadu_ps
#undef _mm512_mask_storeu_ps
#define _mm512_maskz_loadu_ps emulated::load_lanes
#define _mm512_mask_storeu_ps emulated::store_lanes
#define _mm512_cvtepi8_epi32(x) emulated::convert<int32_t, int8_t, __m512i>(x)
#define _mm512_cvtepu8_epi32(x) emulated::convert<int32_t, uint8_t, __m512i>(x)
#define _mm512_cvtepi32_epi16(x) emulated::convert<int16_t, int32_t, __m256i>(x)
#define _mm256_dpbusd_avx_epi32 simde_mm256_dpbusd_epi32
