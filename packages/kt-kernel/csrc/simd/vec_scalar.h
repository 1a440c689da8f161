// SPDX-License-Identifier: Apache-2.0
// `Vec` without intrinsics (GNU vector extensions, lowered by the compiler to what the baseline
// has): the vocabulary every -inl.h is written in, and its documentation. Textual, included inside
// kt::scalar.

struct Vec {
  typedef float F __attribute__((vector_size(32)));    // 8 floats
  typedef int32_t I __attribute__((vector_size(32)));  // 8 int32, or 8 lanes of 4 bytes
  static constexpr int kLanes = 8;

  // Pointers need no alignment. The _n forms touch only the first n lanes (0 <= n <= 8); other
  // lanes load as 0.
  static F zero() { return F{}; }
  static F set1(float x) { return F{x, x, x, x, x, x, x, x}; }
  static F load(const float* p) {
    F x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
  static F load_n(const float* p, int n) {
    F x{};
    std::memcpy(&x, p, sizeof(float) * n);
    return x;
  }
  static void store_n(float* p, F x, int n) { std::memcpy(p, &x, sizeof(float) * n); }

  // 16-bit floats. Stores round to nearest even; a NaN stays a NaN, overflow becomes infinity.
  static F load_bf16(const uint16_t* p) {
    I x;
    for (int i = 0; i < 8; ++i) x[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
    return as_float(x);
  }
  static F round_bf16(F x) {  // to the nearest bf16, still as float
    const I bits = as_int(x);
    const I rounded = (bits + (((bits >> 16) & 1) + 0x7fff)) & static_cast<int32_t>(0xffff0000);
    return x == x ? as_float(rounded) : as_float(set1_i(0x7fc00000));
  }
  static void store_bf16(uint16_t* p, F x) {
    const I bits = as_int(round_bf16(x));
    for (int i = 0; i < 8; ++i) p[i] = static_cast<uint16_t>(static_cast<uint32_t>(bits[i]) >> 16);
  }
  static F load_f16(const uint16_t* p) {
    F x;
    for (int i = 0; i < 8; ++i) x[i] = kt::f16_to_float(p[i]);
    return x;
  }
  static void store_f16(uint16_t* p, F x) {
    for (int i = 0; i < 8; ++i) p[i] = kt::float_to_f16(x[i]);
  }

  static F load_int8(const int8_t* p) {
    F x;
    for (int i = 0; i < 8; ++i) x[i] = p[i];
    return x;
  }

  static void transpose(F (&rows)[kLanes]) {  // rows[i][j] <-> rows[j][i]
    for (int i = 0; i < kLanes; ++i) {
      for (int j = i + 1; j < kLanes; ++j) {
        const float x = rows[i][j];
        rows[i][j] = rows[j][i];
        rows[j][i] = x;
      }
    }
  }

  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  // a * b + c, rounded once where the hardware can, twice here (a library fma call per lane would
  // be 50x slower).
  static F fma(F a, F b, F c) { return a * b + c; }
  // The second operand wins when either is NaN: min(limit, x) keeps a NaN in x.
  static F min(F a, F b) { return a < b ? a : b; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F sqrt(F x) {
    for (int i = 0; i < 8; ++i) x[i] = std::sqrt(x[i]);
    return x;
  }
  static F abs(F x) { return as_float(as_int(x) & 0x7fffffff); }
  static F neg(F x) { return -x; }
  static F round(F x) {                 // to nearest even; |x| < 2^22
    const F magic = set1(12582912.0f);  // 1.5 * 2^23: its ulp is 1
    return (x + magic) - magic;
  }
  static F exp2_int(F n) {  // 2^n for integral n in [-126, 127]
    return as_float((__builtin_convertvector(n, I) + 127) << 23);
  }

  // Horizontal, in one fixed order: ((0+4)+(2+6)) + ((1+5)+(3+7)).
  static float reduce_add(F x) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
  }
  static float reduce_max(F x) {  // NaN lanes: unspecified
    float top = x[0];
    for (int i = 1; i < 8; ++i) top = x[i] > top ? x[i] : top;
    return top;
  }

  static I zero_i() { return I{}; }
  static I set1_i(int32_t x) { return I{x, x, x, x, x, x, x, x}; }
  static I load_i(const void* p) {
    I x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static I broadcast4(const void* p) {  // the same 4 bytes in every lane
    int32_t four;
    std::memcpy(&four, p, 4);
    return set1_i(four);
  }
  static I sub_i(I a, I b) { return a - b; }
  static F to_float(I x) { return __builtin_convertvector(x, F); }
  static void store_int8(int8_t* p, F x) {  // round to nearest even; |x| <= 127
    const F whole = round(x);
    for (int i = 0; i < 8; ++i) p[i] = static_cast<int8_t>(whole[i]);
  }
  static F even_bf16(I x) {
    return as_float(x << 16);
  }  // lower half of each lane, a bf16, as float
  static F odd_bf16(I x) { return as_float(x & static_cast<int32_t>(0xffff0000)); }
  static I low_nibbles(I x) { return x & 0x0f0f0f0f; }  // of every byte, as bytes
  static I high_nibbles(I x) { return (x >> 4) & 0x0f0f0f0f; }

  // acc += dot of the 4 signed bytes of each lane; both operands in [-127, 127].
  static I dot_s8(I acc, I w, I a) {
    for (int byte = 0; byte < 4; ++byte)
      acc += ((w << (24 - 8 * byte)) >> 24) * ((a << (24 - 8 * byte)) >> 24);
    return acc;
  }
  // The same with w in [0, 15], for at most 8 steps from zero; finish_u4 then gives int32 lanes.
  static I dot_u4(I acc, I w, I a) { return dot_s8(acc, w, a); }
  static I finish_u4(I acc) { return acc; }
  // 8 * (sums[0] + sums[1]) in every lane: what offset-8 nibbles overcount in one block.
  static I offset_u4(const int16_t* sums) { return set1_i(8 * (sums[0] + sums[1])); }

 private:
  static F as_float(I x) { return reinterpret_cast<F>(x); }
  static I as_int(F x) { return reinterpret_cast<I>(x); }
};
