// SPDX-License-Identifier: Apache-2.0
// The rounds of SHA-256 on general registers. Compiled once per path, inside its namespace and
// target region, after schedules-inl.h and the path's `round`: no include guard, no headers.

// The working variables, and a ^ b, which is b ^ c of the next round:
// maj(a, b, c) = b ^ ((a ^ b) & (b ^ c)).
struct Working {
  uint32_t a, b, c, d, e, f, g, h, ab;

  [[gnu::always_inline]] explicit Working(const uint32_t (&s)[8])
      : a(s[0]), b(s[1]), c(s[2]), d(s[3]), e(s[4]), f(s[5]), g(s[6]), h(s[7]), ab(b ^ c) {}

  [[gnu::always_inline]] void add_to(uint32_t (&s)[8]) const {
    s[0] += a, s[1] += b, s[2] += c, s[3] += d, s[4] += e, s[5] += f, s[6] += g, s[7] += h;
  }

  // Four rounds; word plus constant of round t at wk[t * stride]. The names have moved by four
  // afterwards: calls alternate between first and second.
  template <int stride>
  [[gnu::always_inline]] void first(const uint32_t* wk) {
    four<stride>(a, b, c, d, e, f, g, h, wk);
  }
  template <int stride>
  [[gnu::always_inline]] void second(const uint32_t* wk) {
    four<stride>(e, f, g, h, a, b, c, d, wk);
  }

 private:
  template <int stride>
  [[gnu::always_inline]] void four(uint32_t& p, uint32_t& q, uint32_t& r, uint32_t& s, uint32_t& t,
                                   uint32_t& u, uint32_t& v, uint32_t& w, const uint32_t* wk) {
    round(p, q, s, t, u, v, w, ab, wk[0]);
    round(w, p, r, s, t, u, v, ab, wk[stride]);
    round(v, w, q, r, s, t, u, ab, wk[2 * stride]);
    round(u, v, p, q, r, s, t, ab, wk[3 * stride]);
  }
};

// The block whose schedule is lane `lane` of `schedules`. Loops stay loops: 64 rounds in a row do
// not fit the cache of decoded instructions.
inline void compress(uint32_t (&state)[8], const Schedules& schedules, int lane) {
  Working working(state);
#pragma GCC unroll 1
  for (int t = 0; t < 64; t += 8) {
    working.first<kLanes>(&schedules.wk[t][lane]);
    working.second<kLanes>(&schedules.wk[t + 4][lane]);
  }
  working.add_to(state);
}

// A block that had to wait for a hash: its schedule is computed between the rounds.
inline void compress_block(uint32_t (&state)[8], const uint8_t* block) {
  Working working(state);
  Words4 w[4];
  for (int i = 0; i < 4; ++i) w[i] = big_endian<Words4>(block + 16 * i);
#pragma GCC unroll 1
  for (int t = 0; t < 64; t += 16) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      Words4 k;
      std::memcpy(&k, kRoundConstants + t + 4 * i, sizeof(k));
      k += w[i];
      alignas(16) uint32_t wk[4];
      std::memcpy(wk, &k, sizeof(k));
      const Words4 &x1 = w[(i + 1) & 3], &x2 = w[(i + 2) & 3], &x3 = w[(i + 3) & 3];
      constexpr Words4 zero{};
      Words4 x = w[i] + sigma0(__builtin_shuffle(w[i], x1, Words4{1, 2, 3, 4})) +
                 __builtin_shuffle(x2, x3, Words4{1, 2, 3, 4});
      x += sigma1(__builtin_shuffle(x3, zero, Words4{2, 3, 4, 5}));       // words 0 and 1, and of
      w[i] = x + sigma1(__builtin_shuffle(zero, x, Words4{0, 1, 4, 5}));  // these words 2 and 3
      if (i & 1)
        working.second<1>(wk);
      else
        working.first<1>(wk);
    }
  }
  working.add_to(state);
}
