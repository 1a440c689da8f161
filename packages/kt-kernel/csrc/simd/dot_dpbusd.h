// SPDX-License-Identifier: Apache-2.0
// `Dot` with VNNI: vpdpbusd multiplies unsigned by signed bytes and adds four products to an int32,
// exactly. dot_scalar.h documents the operations. Textual, included inside a target's namespace
// after `Vec` and dpbusd(sum, unsigned, signed).

struct Dot {
  using I = Vec::I;

  // The weights plus 128, less 128 times the sum of the activations: at most 32 * 255 * 127.
  static I s8(const I (&w)[8], const int8_t* a, const int16_t* sums) {
    I sum = Vec::zero_i();
    for (int j = 0; j < 8; ++j)
      sum = dpbusd(sum, Vec::xor_i(w[j], a128()), Vec::broadcast4(a + 4 * j));
    return Vec::subtract_offset(sum, sums, Vec::set1_i(0x00800080));
  }
  static I u4(const I (&w)[8], const int8_t* a) { return chain(w, a, 0, 8); }
  static I u5(const I (&w)[8], const int8_t* a) { return chain(w, a, 0, 8); }
  static I u6(const I (&w)[8], const int8_t* a, I scales) {
    return scaled(chain(w, a, 0, 4), chain(w, a, 4, 8), scales);
  }

  // Here the activations are the unsigned operand. Sums start below zero by what activations 128
  // too high add: at most 32 * 255 * 128 in all.
  template <int kMagnitude, bool kHalves>
  class Block {
    static constexpr int kChains = kHalves ? 2 : 1, kChain = 8 / kChains;

   public:
    void set(const I (&w)[8], I scales) {
      for (int j = 0; j < 8; ++j) w_[j] = w[j];
      for (int c = 0; c < kChains; ++c) {
        Words sum{};
        for (int j = c * kChain; j < (c + 1) * kChain; ++j)
          sum = reinterpret_cast<Words>(dpbusd(reinterpret_cast<I>(sum), a128(), w[j]));
        start_[c] = reinterpret_cast<I>(-sum);
      }
      scales_ = scales;
    }

    template <int kPanels>
    static void multiply(const Block (&blocks)[kPanels], const uint8_t* a, I (&dots)[kPanels]) {
      I sums[kPanels][kChains];
      for (int p = 0; p < kPanels; ++p)
        for (int c = 0; c < kChains; ++c) sums[p][c] = blocks[p].start_[c];
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        const I x = Vec::broadcast4(a + 4 * j);
        for (int p = 0; p < kPanels; ++p)
          sums[p][j / kChain] = dpbusd(sums[p][j / kChain], x, blocks[p].w_[j]);
      }
      for (int p = 0; p < kPanels; ++p)
        dots[p] =
            kHalves ? scaled(sums[p][0], sums[p][kChains - 1], blocks[p].scales_) : sums[p][0];
    }

   private:
    I w_[8], start_[kChains], scales_;
  };

 private:
  typedef int32_t Words __attribute__((vector_size(sizeof(I))));
  static I a128() { return Vec::set1_i(static_cast<int32_t>(0x80808080)); }
  static I chain(const I (&w)[8], const int8_t* a, int begin, int end) {
    I sum = Vec::zero_i();
    for (int j = begin; j < end; ++j) sum = dpbusd(sum, w[j], Vec::broadcast4(a + 4 * j));
    return sum;
  }
  static I scaled(I low, I high, I scales) {
    const Words words = reinterpret_cast<Words>(scales);
    return reinterpret_cast<I>(reinterpret_cast<Words>(low) * (words << 16 >> 16) +
                               reinterpret_cast<Words>(high) * (words >> 16));
  }
};
