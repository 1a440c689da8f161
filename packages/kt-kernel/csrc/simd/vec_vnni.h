// SPDX-License-Identifier: Apache-2.0
// `Vec` with vpdpbusd: the dot products of `base::Vec` (AVX2 or AVX-512) made of the instruction
// that multiplies unsigned by signed bytes and adds four products to an int32, exactly. Textual,
// included inside a target's namespace after `base` and dpbusd(sum, unsigned, signed).

struct Vec : base::Vec {
  // The weights plus 128, less 128 times the sum of the activations: at most 32 * 255 * 127.
  static I dot_s8(const I (&w)[8], const int8_t* a, const int16_t* sums) {
    I sum = zero_i();
    for (int j = 0; j < 8; ++j)
      sum = dpbusd(sum, w[j] ^ set1_i(static_cast<int32_t>(0x80808080)), broadcast4(a + 4 * j));
    return subtract_offset(sum, sums, set1_i(0x00800080));
  }
  static I dot_u4(const I (&w)[8], const int8_t* a) { return chain(w, a, 0, 8); }
  static I dot_u5(const I (&w)[8], const int8_t* a) { return chain(w, a, 0, 8); }
  static I dot_u6(const I (&w)[8], const int8_t* a, I scales) {
    const Words words = reinterpret_cast<Words>(scales);
    const Words low = reinterpret_cast<Words>(chain(w, a, 0, 4)) * (words << 16 >> 16);
    const Words high = reinterpret_cast<Words>(chain(w, a, 4, 8)) * (words >> 16);
    return reinterpret_cast<I>(low + high);
  }

 private:
  typedef int32_t Words __attribute__((vector_size(sizeof(I))));
  static I chain(const I (&w)[8], const int8_t* a, int begin, int end) {
    I sum = zero_i();
    for (int j = begin; j < end; ++j) sum = dpbusd(sum, w[j], broadcast4(a + 4 * j));
    return sum;
  }
};
