// SPDX-License-Identifier: Apache-2.0
// `Dot` for AVX2 and AVX-512 without VNNI: vpmaddubsw multiplies unsigned by signed bytes and adds
// neighbours to an int16, with saturation; vpaddw adds those, vpmaddwd widens the sums to int32.
// dot_scalar.h documents the operations. Textual, included inside a target's namespace after `Vec`.

struct Dot {
  using I = Vec::I;

  // |w| * (a with w's sign). 128 * 127 * 2 = 32512 cannot saturate int16, but a second one could:
  // each is widened at once.
  static I s8(const I (&w)[8], const int8_t* a, const int16_t*) {
    I sum = Vec::zero_i();
    for (int j = 0; j < 8; ++j) {
      const I x = Vec::sign8(Vec::broadcast4(a + 4 * j), w[j]);
      sum = Vec::add32(sum, widen(Vec::maddubs(Vec::abs8(w[j]), x)));
    }
    return sum;
  }
  // Products of unsigned weights up to kMost add up in int16 as long as kChain * 2 * kMost * 127
  // stays within 32767: 8 of 15 (30480), 4 of 31 (31496), 2 of 63 (32004).
  static I u4(const I (&w)[8], const int8_t* a) { return widen(chain<15, 8>(w, a)); }
  static I u5(const I (&w)[8], const int8_t* a) {
    return Vec::add32(widen(chain<31, 4>(w, a)), widen(chain<31, 4>(w + 4, a + 16)));
  }
  // Either half of the block is multiplied by its own scale while it is widened: at most
  // 4 * 2 * 32004 * 128 (3.3e7) in int32.
  static I u6(const I (&w)[8], const int8_t* a, I scales) {
    const I low = Vec::both_low16(scales), high = Vec::both_high16(scales);
    I sum = Vec::madd16(chain<63, 2>(w, a), low);
    for (int j = 2; j < 8; j += 2)
      sum = Vec::add32(sum, Vec::madd16(chain<63, 2>(w + j, a + 4 * j), j < 4 ? low : high));
    return sum;
  }

  // Here the activations are the unsigned operand: the weights may then stay in memory, and one
  // broadcast serves every panel. Activations 128 too high make every int16 sum too large by what
  // `bias_` holds. Sums wrap around without harm, because kChain * 2 * kMagnitude * 127, the
  // largest after the bias is gone, fits; one vpmaddubsw by itself reaches 2 * 255 * 32.
  template <int kMagnitude, bool kHalves>
  class Block {
    // Bytes of full range are two planes: 16 * high + low, of magnitudes 8 and 15.
    static constexpr int kPlanes = kMagnitude == 128 ? 2 : 1;
    static constexpr int kPlane = kPlanes == 2 ? 15 : kMagnitude;
    static constexpr int kChain = !kHalves && 8 * 2 * kPlane * 127 <= 32767 ? 8 : 4;
    static constexpr int kChains = 8 / kChain;
    static_assert(kChain * 2 * kPlane * 127 <= 32767, "int16 sums would overflow");
    static_assert(kChain * kPlane <= 128, "the sum of a chain's weights would overflow a byte");

   public:
    void set(const I (&w)[8], I scales) {
      if constexpr (kPlanes == 2) {
        const I eight = Vec::set1_i(0x08080808);
        for (int j = 0; j < 8; ++j) {
          w_[0][j] = Vec::low_nibbles(w[j]);  // and the upper one as a signed number:
          w_[1][j] = Vec::sub8(Vec::xor_i(Vec::high_nibbles(w[j]), eight), eight);
        }
      } else {
        for (int j = 0; j < 8; ++j) w_[0][j] = w[j];
      }
      const I a128 = Vec::set1_i(static_cast<int32_t>(0x80808080));
      for (int plane = 0; plane < kPlanes; ++plane) {
        for (int c = 0; c < kChains; ++c) {
          I sum = w_[plane][c * kChain];
          for (int j = 1; j < kChain; ++j) sum = Vec::add8(sum, w_[plane][c * kChain + j]);
          bias_[plane][c] = Vec::maddubs(a128, sum);
        }
      }
      if constexpr (kHalves) {
        widen_[0] = Vec::both_low16(scales);
        widen_[1] = Vec::both_high16(scales);
      }
    }

    template <int kPanels>
    static void multiply(const Block (&blocks)[kPanels], const uint8_t* a, I (&dots)[kPanels]) {
      for (int c = 0; c < kChains; ++c) {
        I sums[kPanels * kPlanes];  // flat: gcc keeps it in registers
#pragma GCC unroll 8
        for (int i = 0; i < kChain; ++i) {
          const int j = c * kChain + i;
          I x = Vec::broadcast4(a + 4 * j);
          // or else gcc would broadcast all eight at first and spill the sums
          for (int s = 0; i > 0 && s < kPanels * kPlanes; ++s) Vec::order(x, sums[s]);
#pragma GCC unroll 4
          for (int s = 0; s < kPanels * kPlanes; ++s) {
            const Block& block = blocks[s / kPlanes];
            const I product = Vec::maddubs(x, block.w_[s % kPlanes][j]);
            sums[s] = i == 0 ? Vec::sub16(product, block.bias_[s % kPlanes][c])
                             : Vec::add16(sums[s], product);
          }
        }
        for (int p = 0; p < kPanels; ++p) {
          const I low = sums[p * kPlanes];
          I dot = kHalves ? Vec::madd16(low, blocks[p].widen_[c]) : widen(low);
          if constexpr (kPlanes == 2)
            dot = Vec::add32(dot, Vec::madd16(sums[p * 2 + 1], Vec::set1_i(0x00100010)));
          dots[p] = c == 0 ? dot : Vec::add32(dots[p], dot);
        }
      }
    }

   private:
    I w_[kPlanes][8], bias_[kPlanes][kChains];
    I widen_[kHalves ? 2 : 1];  // kHalves: the scale of either half in both int16 of a lane
  };

 private:
  static I widen(I pairs) { return Vec::madd16(pairs, Vec::set1_i(0x00010001)); }
  template <int kMost, int kChain>
  static I chain(const I* w, const int8_t* a) {
    static_assert(kChain * 2 * kMost * 127 <= 32767, "int16 sums would overflow");
    I pairs = Vec::maddubs(w[0], Vec::broadcast4(a));
    for (int j = 1; j < kChain; ++j)
      pairs = Vec::add16(pairs, Vec::maddubs(w[j], Vec::broadcast4(a + 4 * j)));
    return pairs;
  }
};
