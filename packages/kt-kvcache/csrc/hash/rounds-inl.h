// SPDX-License-Identifier: Apache-2.0
// The rounds of SHA-256 on general registers. Compiled once per path, inside its namespace and
// target region, after schedules-inl.h and the path's `round`: no include guard, no headers.

// Compilers would move the eight words of a state between memory and registers by way of a vector:
// ten instructions a word, and all rounds wait for them.
[[gnu::always_inline]] inline uint32_t scalar(uint32_t x) {
  asm("" : "+r"(x));
  return x;
}

// The working variables, and a ^ b, which is b ^ c of the next round:
// maj(a, b, c) = b ^ ((a ^ b) & (b ^ c)).
struct Working {
  uint32_t a, b, c, d, e, f, g, h, ab;

  [[gnu::always_inline]] explicit Working(const uint32_t (&s)[8])
      : a(scalar(s[0])),
        b(scalar(s[1])),
        c(scalar(s[2])),
        d(scalar(s[3])),
        e(scalar(s[4])),
        f(scalar(s[5])),
        g(scalar(s[6])),
        h(scalar(s[7])),
        ab(b ^ c) {}

  [[gnu::always_inline]] void add_to(uint32_t (&s)[8]) const {
    const uint32_t sums[8] = {s[0] + a, s[1] + b, s[2] + c, s[3] + d,
                              s[4] + e, s[5] + f, s[6] + g, s[7] + h};
    for (int i = 0; i < 8; ++i) s[i] = scalar(sums[i]);
  }

  // Eight rounds; word plus constant of round t at wk[t * kLanes]. Afterwards every name is back
  // where it was.
  [[gnu::always_inline]] void eight(const uint32_t* wk) {
    four(a, b, c, d, e, f, g, h, wk);
    four(e, f, g, h, a, b, c, d, wk + 4 * kLanes);
  }

 private:
  [[gnu::always_inline]] void four(uint32_t& p, uint32_t& q, uint32_t& r, uint32_t& s, uint32_t& t,
                                   uint32_t& u, uint32_t& v, uint32_t& w, const uint32_t* wk) {
    round(p, q, s, t, u, v, w, ab, wk[0]);
    round(w, p, r, s, t, u, v, ab, wk[kLanes]);
    round(v, w, q, r, s, t, u, ab, wk[2 * kLanes]);
    round(u, v, p, q, r, s, t, ab, wk[3 * kLanes]);
  }
};

// The block whose schedule is lane `lane` of `schedules`. Loops stay loops: 64 rounds in a row do
// not fit the cache of decoded instructions. Not inlined: the rounds need every register.
[[gnu::noinline]] inline void compress(uint32_t (&state)[8], const Schedules& schedules, int lane) {
  Working working(state);
#pragma GCC unroll 1
  for (int t = 0; t < 64; t += 8) working.eight(&schedules.wk[t][lane]);
  working.add_to(state);
}
