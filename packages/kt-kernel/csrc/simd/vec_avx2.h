// SPDX-License-Identifier: Apache-2.0
// `Vec` for AVX2 + FMA + F16C: the vocabulary every -inl.h is written in. Textual, included inside
// kt::avx2. vec_scalar.h documents each operation; both files offer exactly the same names.

struct Vec {
  using F = __m256;   // 8 floats
  using I = __m256i;  // 8 int32, or 8 lanes of 4 bytes
  static constexpr int kLanes = 8;

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F load_n(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static void store_n(float* p, F x, int n) { _mm256_maskstore_ps(p, first(n), x); }

  static F load_bf16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static F round_bf16(F x) {
    const I bits = _mm256_castps_si256(x);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const I rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const F finite = _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(0xffff0000)));
    const F quiet_nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    return _mm256_blendv_ps(finite, quiet_nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }
  static void store_bf16(uint16_t* p, F x) {
    const I high = _mm256_srli_epi32(_mm256_castps_si256(round_bf16(x)), 16);
    const I packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static F load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_f16(uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  static F load_int8(const int8_t* p) {
    return to_float(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }

  static void transpose(F (&rows)[kLanes]) {
    F pairs[kLanes], fours[kLanes];
    for (int i = 0; i < kLanes; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < kLanes; i += 4) {
      fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
      fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
      fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
      fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
      rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
  }

  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F sqrt(F x) { return _mm256_sqrt_ps(x); }
  static F abs(F x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  static F neg(F x) { return _mm256_xor_ps(_mm256_set1_ps(-0.0f), x); }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F exp2_int(F n) {
    const I biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }

  static float reduce_add(F x) {
    const __m128 a = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 b = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
  }
  static float reduce_max(F x) {
    const __m128 a = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 b = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
  }

  static I zero_i() { return _mm256_setzero_si256(); }
  static I set1_i(int32_t x) { return _mm256_set1_epi32(x); }
  static I load_i(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
  static I broadcast4(const void* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
  }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static void store_int8(int8_t* p, F x) {
    const I words = _mm256_cvtps_epi32(x);
    const I halves = _mm256_permute4x64_epi64(_mm256_packs_epi32(words, words), 0x08);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(halves), _mm_setzero_si128());
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
  }
  static F as_float(I x) { return _mm256_castsi256_ps(x); }
  static I as_int(F x) { return _mm256_castps_si256(x); }
  static F even_bf16(I x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
  static F odd_bf16(I x) {
    return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff0000)));
  }
  static I low_nibbles(I x) { return _mm256_and_si256(x, _mm256_set1_epi8(0x0f)); }
  static I high_nibbles(I x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }

  static I sub8(I a, I b) { return _mm256_sub_epi8(a, b); }
  static I and_i(I a, I b) { return _mm256_and_si256(a, b); }
  static I xor_i(I a, I b) { return _mm256_xor_si256(a, b); }
  static I or_i(I a, I b) { return _mm256_or_si256(a, b); }
  template <int kBits>
  static I shift_left(I x) {
    return _mm256_slli_epi16(x, kBits);
  }
  template <int kBits>
  static I shift_right(I x) {
    return _mm256_srli_epi16(x, kBits);
  }
  static I lookup(const uint8_t (&table)[16], I index) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(half), index);
  }

  static F load_f32(const std::byte* p, int64_t) { return load(reinterpret_cast<const float*>(p)); }
  static I load_i(const std::byte* p, int64_t) { return load_i(p); }
  static F load_bf16(const std::byte* p, int64_t) {
    return load_bf16(reinterpret_cast<const uint16_t*>(p));
  }
  static F load_f16(const std::byte* p, int64_t) {
    return load_f16(reinterpret_cast<const uint16_t*>(p));
  }
  static F load_u8(const std::byte* p, int64_t) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load8(p)));
  }
  static F load_e8m0(const std::byte* p, int64_t) {
    const I e = _mm256_cvtepu8_epi32(load8(p));
    const I nan = _mm256_srli_epi32(_mm256_cmpeq_epi32(e, _mm256_set1_epi32(255)), 1);
    // 2^-127, the least, is below the normal floats: half of one.
    const I bits = _mm256_max_epi32(_mm256_slli_epi32(e, 23), _mm256_set1_epi32(0x00400000));
    return _mm256_castsi256_ps(_mm256_or_si256(bits, nan));
  }
  // A block of e4m3 / 256 as f16, in memory, because from there vcvtph2ps does without the one port
  // that shuffles.
  class Fp8Block {
   public:
    void set(const std::byte* p, int64_t) {
      const I high = _mm256_set1_epi8(static_cast<char>(0xbf)), low = _mm256_set1_epi8(-0x80);
      for (int i = 0; i < 16; i += 2) {
        const I codes = load_i(p + 16 * i);
        const I highs = _mm256_and_si256(codes, high);
        const I lows = _mm256_and_si256(_mm256_add_epi8(codes, codes), low);
        f16_[i] = _mm256_unpacklo_epi8(lows, highs);
        f16_[i + 1] = _mm256_unpackhi_epi8(lows, highs);
      }
      __asm__("" : "+m"(f16_));  // or else gcc would shuffle
    }
    void load4(int k, F (&w)[4]) const {
      const auto* f16 = reinterpret_cast<const uint16_t*>(f16_) + 8 * k;
      for (int i = 0; i < 4; ++i) w[i] = load_f16(f16 + 8 * (i / 2 + i % 2 * 2));
    }

   private:
    I f16_[16];  // K = 0, 2; 1, 3; 4, 6; …
  };
  static F load_each(const std::byte* p, int64_t) {
    float x;
    std::memcpy(&x, p, sizeof x);
    return set1(x);
  }
  static I pair_s8(const std::byte* low, const std::byte* high, int64_t) {
    const I a = _mm256_cvtepi8_epi32(load8(low)), b = _mm256_cvtepi8_epi32(load8(high));
    return _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa);
  }

  static I subtract_offset(I dot, const int16_t* sums, I offset) {
    return _mm256_sub_epi32(dot, _mm256_madd_epi16(broadcast4(sums), offset));
  }

  // What dot_maddubs.h is made of: lanes of 8, 16 or 32 bits, as the intrinsics are named.
  static I maddubs(I u, I s) { return _mm256_maddubs_epi16(u, s); }
  static I madd16(I a, I b) { return _mm256_madd_epi16(a, b); }
  static I add8(I a, I b) { return _mm256_add_epi8(a, b); }
  static I add16(I a, I b) { return _mm256_add_epi16(a, b); }
  static I sub16(I a, I b) { return _mm256_sub_epi16(a, b); }
  static I add32(I a, I b) { return _mm256_add_epi32(a, b); }
  static I abs8(I x) { return _mm256_abs_epi8(x); }
  static I sign8(I x, I s) { return _mm256_sign_epi8(x, s); }
  // Says to the compiler that `later` depends on `earlier`.
  static void order(I& later, const I& earlier) { __asm__("" : "+x"(later) : "x"(earlier)); }
  static I both_low16(I x) { return _mm256_blend_epi16(x, _mm256_slli_epi32(x, 16), 0xaa); }
  static I both_high16(I x) { return _mm256_blend_epi16(_mm256_srli_epi32(x, 16), x, 0xaa); }

 private:
  static __m128i load8(const std::byte* p) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  }
  static I first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};
