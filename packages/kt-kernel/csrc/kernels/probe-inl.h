// SPDX-License-Identifier: Apache-2.0
// A loop that does nothing but load: how fast memory can be read at best, to judge kernels by. The
// loops that do nothing but multiply are the target's (csrc/simd/peak_x86.h). Textual.

inline uint64_t probe_read(const std::byte* data, int64_t bytes) {
  constexpr int kStreams = 8;  // sums that do not wait for each other
  constexpr int64_t kStep = kStreams * sizeof(Vec::I);
  static_assert(kReadBlock % kStep == 0);
  Vec::I sums[kStreams] = {};
  for (int64_t at = 0; at < bytes; at += kStep)
    for (int s = 0; s < kStreams; ++s) sums[s] ^= Vec::load_i(data + at + s * sizeof(Vec::I));
  uint64_t words[sizeof sums / (sizeof(uint64_t))];
  std::memcpy(words, sums, sizeof sums);
  uint64_t sum = 0;
  for (const uint64_t word : words) sum ^= word;
  return sum;
}
