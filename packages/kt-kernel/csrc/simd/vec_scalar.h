// SPDX-License-Identifier: Apache-2.0
// `Vec` without intrinsics (GNU vector extensions, lowered by the compiler to what the baseline
// has): the vocabulary every -inl.h is written in, and its documentation. Textual, included inside
// kt::scalar.
//
// Operations that go lane by lane are calls (KT_CALL): inlined where formats and kernels use them,
// they take compilers a minute and gain nothing.
#define KT_CALL __attribute__((noinline))

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
  KT_CALL static F load_f16(const uint16_t* p) {
    F x;
    for (int i = 0; i < 8; ++i) x[i] = kt::f16_to_float(p[i]);
    return x;
  }
  KT_CALL static void store_f16(uint16_t* p, F x) {
    for (int i = 0; i < 8; ++i) p[i] = kt::float_to_f16(x[i]);
  }

  static F load_int8(const int8_t* p) {
    F x;
    for (int i = 0; i < 8; ++i) x[i] = p[i];
    return x;
  }

  KT_CALL static void transpose(F (&rows)[kLanes]) {  // rows[i][j] <-> rows[j][i]
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
  static F to_float(I x) { return __builtin_convertvector(x, F); }
  static void store_int8(int8_t* p, F x) {  // round to nearest even; |x| <= 127
    const F whole = round(x);
    for (int i = 0; i < 8; ++i) p[i] = static_cast<int8_t>(whole[i]);
  }
  static F as_float(I x) { return reinterpret_cast<F>(x); }  // the same bits
  static I as_int(F x) { return reinterpret_cast<I>(x); }
  static F even_bf16(I x) {
    return as_float(x << 16);
  }  // lower half of each lane, a bf16, as float
  static F odd_bf16(I x) { return as_float(x & static_cast<int32_t>(0xffff0000)); }
  static I low_nibbles(I x) { return x & 0x0f0f0f0f; }  // of every byte, as bytes
  static I high_nibbles(I x) { return (x >> 4) & 0x0f0f0f0f; }

  static I sub8(I a, I b) {  // of every byte
    typedef uint8_t Bytes __attribute__((vector_size(32)));
    return reinterpret_cast<I>(reinterpret_cast<Bytes>(a) - reinterpret_cast<Bytes>(b));
  }
  static I and_i(I a, I b) { return a & b; }
  static I xor_i(I a, I b) { return a ^ b; }
  static I or_i(I a, I b) { return a | b; }
  template <int kBits>
  static I shift_left(I x) {  // of 16-bit lanes, as the next one
    return reinterpret_cast<I>(reinterpret_cast<Halves>(x) << kBits);
  }
  template <int kBits>
  static I shift_right(I x) {
    return reinterpret_cast<I>(reinterpret_cast<Halves>(x) >> kBits);
  }
  KT_CALL static I lookup(const uint8_t (&table)[16], I index) {  // of every byte, in [0, 15]
    uint8_t bytes[sizeof(I)];
    std::memcpy(bytes, &index, sizeof index);
    for (uint8_t& byte : bytes) byte = table[byte];
    std::memcpy(&index, bytes, sizeof index);
    return index;
  }

  // Elements of the panels that one vector spans, `stride` bytes apart: 8 per panel, except
  // load_each, which gives every lane of a panel its one float.
  static F load_f32(const std::byte* p, int64_t) { return load(reinterpret_cast<const float*>(p)); }
  static I load_i(const std::byte* p, int64_t) { return load_i(p); }
  static F load_bf16(const std::byte* p, int64_t) {
    return load_bf16(reinterpret_cast<const uint16_t*>(p));
  }
  static F load_f16(const std::byte* p, int64_t) {
    return load_f16(reinterpret_cast<const uint16_t*>(p));
  }
  static F load_u8(const std::byte* p, int64_t) {
    F x;
    for (int i = 0; i < 8; ++i) x[i] = static_cast<float>(static_cast<uint8_t>(p[i]));
    return x;
  }
  KT_CALL static F load_e8m0(const std::byte* p, int64_t) {  // 2^(byte - 127); 255: NaN
    F x;
    for (int i = 0; i < 8; ++i) {
      const uint32_t e = static_cast<uint8_t>(p[i]);
      x[i] = kt::float_from_bits(e == 0 ? 0x00400000 : e == 255 ? 0x7fc00000 : e << 23);
    }
    return x;
  }
  // The weights of a block of e4m3, divided by 256; NaN codes are not looked for.
  class Fp8Block {
   public:
    void set(const std::byte* p, int64_t) { bytes_ = p; }
    KT_CALL void load4(int k, F (&w)[4]) const {
      for (int i = 0; i < 32; ++i) {
        const uint32_t code = static_cast<uint8_t>(bytes_[8 * k + i]);
        w[i / 8][i % 8] =
            kt::f16_to_float(static_cast<uint16_t>((code & 0xbf) << 8 | (code & 0x40) << 1));
      }
    }

   private:
    const std::byte* bytes_;
  };
  static F load_each(const std::byte* p, int64_t) {
    float x;
    std::memcpy(&x, p, sizeof x);
    return set1(x);
  }
  // Two signed bytes per lane as the low and the high 16 bits.
  static I pair_s8(const std::byte* low, const std::byte* high, int64_t) {
    I x;
    for (int i = 0; i < 8; ++i)
      x[i] = (static_cast<int8_t>(low[i]) & 0xffff) |
             static_cast<int32_t>(static_cast<uint32_t>(static_cast<int8_t>(high[i])) << 16);
    return x;
  }

  // dot - (sums[0] * low int16 + sums[1] * high int16 of each lane of offset): what the halves of a
  // block overcount, given the sums of their activations.
  static I subtract_offset(I dot, const int16_t* sums, I offset) {
    return dot - ((offset << 16) >> 16) * int32_t{sums[0]} - (offset >> 16) * int32_t{sums[1]};
  }

 private:
  typedef uint16_t Halves __attribute__((vector_size(32)));
};
