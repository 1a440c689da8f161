// SPDX-License-Identifier: Apache-2.0
// `Vec` for AVX-512 F + BW + DQ + VL, 16 lanes: as much of the vocabulary as formats, gemm and
// attention need (the other kernels come from AVX2). Textual, included inside a target's namespace.
// vec_scalar.h documents each operation; a vector spans two panels `stride` bytes apart.

struct Vec {
  using F = __m512;   // 16 floats
  using I = __m512i;  // 16 int32, or 16 lanes of 4 bytes
  static constexpr int kLanes = 16;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store_n(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }

  static F load_bf16(const uint16_t* p) {
    return even_bf16(_mm512_cvtepu16_epi32(load32(reinterpret_cast<const std::byte*>(p))));
  }
  static F round_bf16(F x) {
    const I bits = _mm512_castps_si512(x);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const I rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const I finite = _mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_castsi512_ps(_mm512_mask_blend_epi32(nan, finite, _mm512_set1_epi32(0x7fc00000)));
  }
  static void store_bf16(uint16_t* p, F x) {
    const I high = _mm512_srli_epi32(_mm512_castps_si512(round_bf16(x)), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
  }
  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(load32(reinterpret_cast<const std::byte*>(p)));
  }
  static void store_f16(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  static F load_int8(const int8_t* p) {
    return to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }

  static void transpose(F (&rows)[kLanes]) {
    F fours[kLanes];  // four rows of each quarter, turned: as on AVX2
    for (int i = 0; i < kLanes; i += 4) {
      const F a = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
      const F b = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
      const F c = _mm512_unpacklo_ps(rows[i + 2], rows[i + 3]);
      const F d = _mm512_unpackhi_ps(rows[i + 2], rows[i + 3]);
      fours[i] = _mm512_shuffle_ps(a, c, 0x44);
      fours[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
      fours[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
      fours[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {  // quarters become rows
      const F a = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0x88);
      const F b = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0xdd);
      const F c = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0x88);
      const F d = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0xdd);
      rows[i] = _mm512_shuffle_f32x4(a, c, 0x88);
      rows[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
      rows[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
      rows[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
  }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F abs(F x) { return _mm512_abs_ps(x); }
  static F neg(F x) {
    const I sign = _mm512_set1_epi32(static_cast<int>(0x80000000));
    return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), sign));
  }
  static F round(F x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F exp2_int(F n) {
    const I biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
  }

  static float reduce_add(F x) {
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), upper(x));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
  }
  static float reduce_max(F x) {
    const __m256 a = _mm256_max_ps(_mm512_castps512_ps256(x), upper(x));
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
  }

  static I zero_i() { return _mm512_setzero_si512(); }
  static I set1_i(int32_t x) { return _mm512_set1_epi32(x); }
  static I load_i(const void* p) { return _mm512_loadu_si512(p); }
  static I broadcast4(const void* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static void store_int8(int8_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
  }
  static F as_float(I x) { return _mm512_castsi512_ps(x); }
  static I as_int(F x) { return _mm512_castps_si512(x); }
  static F even_bf16(I x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
  static F odd_bf16(I x) {
    const I high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    return _mm512_castsi512_ps(_mm512_and_si512(x, high));
  }
  static I low_nibbles(I x) { return _mm512_and_si512(x, _mm512_set1_epi8(0x0f)); }
  static I high_nibbles(I x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }

  static I sub8(I a, I b) { return _mm512_sub_epi8(a, b); }
  static I and_i(I a, I b) { return _mm512_and_si512(a, b); }
  static I xor_i(I a, I b) { return _mm512_xor_si512(a, b); }
  static I or_i(I a, I b) { return _mm512_or_si512(a, b); }
  template <int kBits>
  static I shift_left(I x) {
    return _mm512_slli_epi16(x, kBits);
  }
  template <int kBits>
  static I shift_right(I x) {
    return _mm512_srli_epi16(x, kBits);
  }
  static I lookup(const uint8_t (&table)[16], I index) {
    const __m128i quarter = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(quarter), index);
  }

  static I load_i(const std::byte* p, int64_t stride) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(load32(p)), load32(p + stride), 1);
  }
  static F load_f32(const std::byte* p, int64_t stride) {
    return _mm512_castsi512_ps(load_i(p, stride));
  }
  static F load_bf16(const std::byte* p, int64_t stride) {
    return even_bf16(_mm512_cvtepu16_epi32(load16(p, stride)));
  }
  static F load_f16(const std::byte* p, int64_t stride) {
    return _mm512_cvtph_ps(load16(p, stride));
  }
  static F load_u8(const std::byte* p, int64_t stride) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load8(p, stride)));
  }
  static F load_e8m0(const std::byte* p, int64_t stride) {
    const I e = _mm512_cvtepu8_epi32(load8(p, stride));
    const __mmask16 nan = _mm512_cmpeq_epi32_mask(e, _mm512_set1_epi32(255));
    const I bits = _mm512_max_epi32(_mm512_slli_epi32(e, 23), _mm512_set1_epi32(0x00400000));
    return _mm512_castsi512_ps(_mm512_mask_blend_epi32(nan, bits, _mm512_set1_epi32(0x7fc00000)));
  }
  class Fp8Block {
   public:
    void set(const std::byte* p, int64_t stride) {
      const I high = _mm512_set1_epi8(static_cast<char>(0xbf)), low = _mm512_set1_epi8(-0x80);
      for (int i = 0; i < 16; i += 2) {
        // K = 0, 2 | 0, 2 | 1, 3 | 1, 3 of one panel and the other.
        const I codes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7),
                                                 load_i(p + 16 * i, stride));
        const I highs = _mm512_and_si512(codes, high);
        const I lows = _mm512_and_si512(_mm512_add_epi8(codes, codes), low);
        f16_[i] = _mm512_unpacklo_epi8(lows, highs);
        f16_[i + 1] = _mm512_unpackhi_epi8(lows, highs);
      }
      __asm__("" : "+m"(f16_));  // or else gcc would shuffle
    }
    void load4(int k, F (&w)[4]) const {
      const auto* f16 = reinterpret_cast<const uint16_t*>(f16_) + 16 * k;
      for (int i = 0; i < 4; ++i) w[i] = load_f16(f16 + 16 * i);
    }

   private:
    I f16_[16];  // K = 0, 1; 2, 3; 4, 5; …
  };
  static F load_each(const std::byte* p, int64_t stride) {
    float x[2];
    std::memcpy(&x[0], p, sizeof(float));
    std::memcpy(&x[1], p + stride, sizeof(float));
    return _mm512_mask_blend_ps(0xff00, set1(x[0]), set1(x[1]));
  }
  static I pair_s8(const std::byte* low, const std::byte* high, int64_t stride) {
    const I a = _mm512_cvtepi8_epi32(load8(low, stride));
    const I b = _mm512_cvtepi8_epi32(load8(high, stride));
    return halves(a, _mm512_slli_epi32(b, 16));
  }

  static I subtract_offset(I dot, const int16_t* sums, I offset) {
    return _mm512_sub_epi32(dot, _mm512_madd_epi16(broadcast4(sums), offset));
  }

  // What dot_maddubs.h is made of, as on AVX2.
  static I maddubs(I u, I s) { return _mm512_maddubs_epi16(u, s); }
  static I madd16(I a, I b) { return _mm512_madd_epi16(a, b); }
  static I add8(I a, I b) { return _mm512_add_epi8(a, b); }
  static I add16(I a, I b) { return _mm512_add_epi16(a, b); }
  static I sub16(I a, I b) { return _mm512_sub_epi16(a, b); }
  static I add32(I a, I b) { return _mm512_add_epi32(a, b); }
  static I abs8(I x) { return _mm512_abs_epi8(x); }
  static I sign8(I x, I s) {  // for s != 0: dot_maddubs.h multiplies the result by |s|
    return _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(s), zero_i(), x);
  }
  static void order(I& later, const I& earlier) {
#ifndef KT_EMULATED  // whose I is no register
    __asm__("" : "+v"(later) : "v"(earlier));
#endif
  }
  static I both_low16(I x) { return halves(x, _mm512_slli_epi32(x, 16)); }
  static I both_high16(I x) { return halves(_mm512_srli_epi32(x, 16), x); }

 private:
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static __m256 upper(F x) {
    return _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(x), 1));
  }
  static __m128i load8(const std::byte* p, int64_t stride) {
    return _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)),
                              _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + stride)));
  }
  static __m256i load16(const std::byte* p, int64_t stride) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + stride));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  }
  static __m256i load32(const std::byte* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  // The low 16 bits of every lane of one, the high 16 bits of the other.
  static I halves(I low, I high) { return _mm512_mask_blend_epi16(0xaaaaaaaa, low, high); }
};
