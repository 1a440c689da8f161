// SPDX-License-Identifier: Apache-2.0
// The rounds of SHA-256 on the last blocks of kLanes messages at once. Compiled once per path,
// inside its namespace and target region, after schedules-inl.h: no include guard, no headers.

template <int a, int b, int c>
[[gnu::always_inline]] inline Words8 rotations(Words8 x) {
  return (x >> a | x << (32 - a)) ^ (x >> b | x << (32 - b)) ^ (x >> c | x << (32 - c));
}

// The states of `n` messages become their hashes; their last blocks are the lanes of `schedules`.
inline void compress_lanes(uint8_t* hashes, size_t n, const Schedules& schedules) {
  Words8 before[8], s[8];
  // One by one: larger pieces may be moved by 512-bit instructions, which slow down what follows.
  for (size_t i = 0; i < kLanes; ++i)
    std::memcpy(&before[i], hashes + (i < n ? i : 0) * kHashBytes, kHashBytes);
  transpose(before);
  for (int i = 0; i < 8; ++i) s[i] = before[i];
#pragma GCC unroll 1
  for (int t = 0; t < 64; t += 8)
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {  // one round; the names have moved by i
      Words8 wk;
      std::memcpy(&wk, schedules.wk[t + i], sizeof(wk));
      const Words8 &a = s[-i & 7], &b = s[(1 - i) & 7], &c = s[(2 - i) & 7];
      const Words8 &e = s[(4 - i) & 7], &f = s[(5 - i) & 7], &g = s[(6 - i) & 7];
      Words8 &d = s[(3 - i) & 7], &h = s[(7 - i) & 7];
      h += wk + (g ^ (e & (f ^ g))) + rotations<6, 11, 25>(e);
      d += h;
      h += ((a & b) | (c & (a | b))) + rotations<2, 13, 22>(a);
    }
  for (int i = 0; i < 8; ++i) s[i] = big_endian(s[i] + before[i]);
  transpose(s);
  for (size_t i = 0; i < n; ++i) std::memcpy(hashes + i * kHashBytes, &s[i], kHashBytes);
}
