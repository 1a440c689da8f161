// SPDX-License-Identifier: Apache-2.0
// Message schedules of SHA-256 in vectors. Compiled once per path, inside its namespace and target
// region: no include guard, no headers.

using Words8 = uint32_t __attribute__((vector_size(32)));

[[gnu::always_inline]] inline Words8 sigma0(Words8 x) {
  return (x >> 7 | x << 25) ^ (x >> 18 | x << 14) ^ x >> 3;
}

[[gnu::always_inline]] inline Words8 sigma1(Words8 x) {
  return (x >> 17 | x << 15) ^ (x >> 19 | x << 13) ^ x >> 10;
}

[[gnu::always_inline]] inline Words8 big_endian(Words8 x) {
  return x >> 24 | (x >> 8 & 0xff00) | (x << 8 & 0xff0000) | x << 24;
}

// Rows become columns.
[[gnu::always_inline]] inline void transpose(Words8 (&x)[8]) {
  Words8 y[8], z[8];
  for (int i = 0; i < 8; i += 2) {
    y[i] = __builtin_shuffle(x[i], x[i + 1], Words8{0, 8, 1, 9, 4, 12, 5, 13});
    y[i + 1] = __builtin_shuffle(x[i], x[i + 1], Words8{2, 10, 3, 11, 6, 14, 7, 15});
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      const Words8 &lo = y[i + j], &hi = y[i + j + 2];
      z[i + 2 * j] = __builtin_shuffle(lo, hi, Words8{0, 1, 8, 9, 4, 5, 12, 13});
      z[i + 2 * j + 1] = __builtin_shuffle(lo, hi, Words8{2, 3, 10, 11, 6, 7, 14, 15});
    }
  for (int i = 0; i < 4; ++i) {
    x[i] = __builtin_shuffle(z[i], z[i + 4], Words8{0, 1, 2, 3, 8, 9, 10, 11});
    x[i + 4] = __builtin_shuffle(z[i], z[i + 4], Words8{4, 5, 6, 7, 12, 13, 14, 15});
  }
}

// The message schedule (FIPS 180-4, 6.2.2 step 1) of kLanes blocks.
inline void schedule(const uint8_t* const (&blocks)[kLanes], Schedules& out) {
  Words8 w[16];
  for (int half = 0; half < 2; ++half) {
    Words8 x[8];
    for (int i = 0; i < kLanes; ++i) {
      std::memcpy(&x[i], blocks[i] + 32 * half, sizeof(x[i]));
      x[i] = big_endian(x[i]);
    }
    transpose(x);
    for (int i = 0; i < 8; ++i) w[8 * half + i] = x[i];
  }
#pragma GCC unroll 1
  for (int t = 0; t < 48; t += 16)
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const Words8 wk = w[i] + kRoundConstants[t + i];
      std::memcpy(out.wk[t + i], &wk, sizeof(wk));
      w[i] += sigma0(w[(i + 1) & 15]) + w[(i + 9) & 15] + sigma1(w[(i + 14) & 15]);
    }
  for (int i = 0; i < 16; ++i) {
    const Words8 wk = w[i] + kRoundConstants[48 + i];
    std::memcpy(out.wk[48 + i], &wk, sizeof(wk));
  }
}
