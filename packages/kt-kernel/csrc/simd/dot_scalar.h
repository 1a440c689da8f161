// SPDX-License-Identifier: Apache-2.0
// `Dot` on the portable `Vec`, and its documentation: exact int32 dot products of a block's 32
// activations with the weights of every lane. dot_maddubs.h and dot_dpbusd.h offer the same names.
// Textual, included inside a target's namespace after `Vec`.

struct Dot {
  using I = Vec::I;

  // Few rows: activations in [-127, 127]; w[j] holds k = 4j .. 4j + 3 of every lane. s8: weights in
  // [-128, 127], and the sums of the activations' halves, for instructions that want unsigned
  // weights; u4, u5: in [0, 15], [0, 31].
  static I s8(const I (&w)[8], const int8_t* a, const int16_t*) { return dot(w, a, 0, 0, 8); }
  static I u4(const I (&w)[8], const int8_t* a) { return dot(w, a, 0, 0, 8); }
  static I u5(const I (&w)[8], const int8_t* a) { return dot(w, a, 0, 0, 8); }
  // Weights in [0, 63], whose halves have int16 scales in the low and high half of each lane.
  static I u6(const I (&w)[8], const int8_t* a, I scales) { return scaled(w, a, 0, scales); }

  // Many rows: a block's weights, of magnitude at most kMagnitude, made ready to be multiplied by
  // activations that are stored 128 higher. kHalves: with scales as in u6.
  template <int kMagnitude, bool kHalves>
  class Block {
   public:
    void set(const I (&w)[8], I scales) {
      std::memcpy(w_, w, sizeof w_);
      scales_ = scales;
    }
    // dots[p] = the product with blocks[p]: panels together, because they share the activations.
    template <int kPanels>
    static void multiply(const Block (&blocks)[kPanels], const uint8_t* a, I (&dots)[kPanels]) {
      for (int p = 0; p < kPanels; ++p)
        dots[p] = kHalves ? scaled(blocks[p].w_, a, 128, blocks[p].scales_)
                          : dot(blocks[p].w_, a, 128, 0, 8);
    }

   private:
    I w_[8], scales_;
  };

 private:
  template <class Byte>
  KT_CALL static I dot(const I (&w)[8], const Byte* a, int zero, int begin, int end) {
    I sum{};
#pragma GCC unroll 1
    for (int j = begin; j < end; ++j)
      for (int byte = 0; byte < 4; ++byte)
        sum += ((w[j] << (24 - 8 * byte)) >> 24) * (static_cast<int32_t>(a[4 * j + byte]) - zero);
    return sum;
  }
  template <class Byte>
  static I scaled(const I (&w)[8], const Byte* a, int zero, I scales) {
    return dot(w, a, zero, 0, 4) * ((scales << 16) >> 16) + dot(w, a, zero, 4, 8) * (scales >> 16);
  }
};
