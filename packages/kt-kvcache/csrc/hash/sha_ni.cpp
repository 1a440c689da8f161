// SPDX-License-Identifier: Apache-2.0
// The path for the SHA instructions, and the same code on a model of them.
#include "constants.h"
#include "run_blocks.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace kt::kvcache {
namespace {

// What the instructions compute, as Intel's manual defines them (SHA256RNDS2, SHA256MSG1,
// SHA256MSG2); words count from the lowest.
struct Model {
  using Words = uint32_t[4];

  static __m128i rounds(__m128i cdgh, __m128i abef, __m128i wk) {
    Words x, y, k;
    store(x, cdgh), store(y, abef), store(k, wk);
    uint32_t a = y[3], b = y[2], c = x[3], d = x[2], e = y[1], f = y[0], g = x[1], h = x[0];
    for (int i = 0; i < 2; ++i) {
      const uint32_t t =
          h + k[i] + ((e & f) ^ (~e & g)) + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25));
      const uint32_t u =
          ((a & b) ^ (a & c) ^ (b & c)) + (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22));
      h = g, g = f, f = e, e = d + t, d = c, c = b, b = a, a = t + u;
    }
    return _mm_set_epi32(int(a), int(b), int(e), int(f));
  }
  static __m128i message1(__m128i w0, __m128i w4) {
    Words x, y;
    store(x, w0), store(y, w4);
    const auto s = [](uint32_t w) { return rotated(w, 7) ^ rotated(w, 18) ^ w >> 3; };
    return _mm_set_epi32(int(x[3] + s(y[0])), int(x[2] + s(x[3])), int(x[1] + s(x[2])),
                         int(x[0] + s(x[1])));
  }
  static __m128i message2(__m128i sum, __m128i w12) {
    Words x, y;
    store(x, sum), store(y, w12);
    const auto s = [](uint32_t w) { return rotated(w, 17) ^ rotated(w, 19) ^ w >> 10; };
    x[0] += s(y[2]), x[1] += s(y[3]), x[2] += s(x[0]), x[3] += s(x[1]);
    return _mm_set_epi32(int(x[3]), int(x[2]), int(x[1]), int(x[0]));
  }

 private:
  static uint32_t rotated(uint32_t x, int n) { return x >> n | x << (32 - n); }
  static void store(Words& words, __m128i x) { std::memcpy(words, &x, sizeof(words)); }
};

}  // namespace

#pragma GCC push_options
#pragma GCC target("sha,ssse3,sse4.1")

namespace sha_ni {
struct Instructions {
  static __m128i rounds(__m128i cdgh, __m128i abef, __m128i wk) {
    return _mm_sha256rnds2_epu32(cdgh, abef, wk);
  }
  static __m128i message1(__m128i w0, __m128i w4) { return _mm_sha256msg1_epu32(w0, w4); }
  static __m128i message2(__m128i sum, __m128i w12) { return _mm_sha256msg2_epu32(sum, w12); }
};
}  // namespace sha_ni

namespace {

// Eight words of state, as the instructions want them.
struct State {
  __m128i abef, cdgh;

  static State load(const uint32_t (&s)[8]) {
    return {_mm_set_epi32(int(s[0]), int(s[1]), int(s[4]), int(s[5])),
            _mm_set_epi32(int(s[2]), int(s[3]), int(s[6]), int(s[7]))};
  }

  void store(void* out) const {
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), hgdc = _mm_shuffle_epi32(cdgh, 0x1b);
    _mm_storeu_si128(static_cast<__m128i*>(out), _mm_unpacklo_epi64(feba, hgdc));
    _mm_storeu_si128(static_cast<__m128i*>(out) + 1, _mm_unpackhi_epi64(feba, hgdc));
  }
};

inline __m128i big_endian(__m128i x) {
  return _mm_shuffle_epi8(x, _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3));
}

// A block of each of `n` messages. Nearly all of a round is waiting for the one before: two
// messages in turns take little longer than one.
template <class Sha, int n>
inline void compress(State (&states)[n], const uint8_t* const (&blocks)[n]) {
  __m128i w[n][4];
  State s[n];
  for (int m = 0; m < n; ++m) {
    for (int i = 0; i < 4; ++i)
      w[m][i] = big_endian(_mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks[m]) + i));
    s[m] = states[m];
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)  // four rounds
#pragma GCC unroll 2
    for (int m = 0; m < n; ++m) {
      __m128i &w0 = w[m][i & 3], &w12 = w[m][(i + 3) & 3];
      const __m128i &w4 = w[m][(i + 1) & 3], &w8 = w[m][(i + 2) & 3];
      const auto* k = reinterpret_cast<const __m128i*>(kRoundConstants) + i;
      const __m128i wk = _mm_add_epi32(w0, _mm_load_si128(k));
      s[m].cdgh = Sha::rounds(s[m].cdgh, s[m].abef, wk);
      s[m].abef = Sha::rounds(s[m].abef, s[m].cdgh, _mm_shuffle_epi32(wk, 0x0e));
      const __m128i w9 = _mm_alignr_epi8(w12, w8, 4);
      if (i < 12) w0 = Sha::message2(_mm_add_epi32(Sha::message1(w0, w4), w9), w12);
    }
  for (int m = 0; m < n; ++m) {
    states[m].abef = _mm_add_epi32(s[m].abef, states[m].abef);
    states[m].cdgh = _mm_add_epi32(s[m].cdgh, states[m].cdgh);
  }
}

// The run, and beside each page's first block what ends the message of the page before.
template <class Sha>
inline void hash_pages(RunningHash& run, const PagesToHash& pages) {
  const RunBlocks blocks(run, pages);
  State state[1] = {State::load(run.state)}, ended[1];
  uint8_t last[kBlockBytes];
  size_t num_ended = 0;  // pages whose hashes are there
  const auto store_hash = [&] {
    const State hash = {big_endian(ended[0].abef), big_endian(ended[0].cdgh)};
    hash.store(pages.hashes + kHashBytes * num_ended++);
  };
  size_t block = 0;
  for (size_t page = 0; page < pages.num_pages; ++page) {
    for (const size_t end = blocks.end_of(page); block < end; ++block) {
      if (num_ended < page) {
        State both[2] = {state[0], ended[0]};
        compress<Sha, 2>(both, {blocks.block(block), last});
        state[0] = both[0], ended[0] = both[1];
        store_hash();
      } else {
        compress<Sha, 1>(state, {blocks.block(block)});
      }
    }
    if (num_ended < page) {  // no block in between
      compress<Sha, 1>(ended, {last});
      store_hash();
    }
    ended[0] = state[0];
    if (blocks.ends_twice(page)) {
      blocks.write_end(page, last);
      compress<Sha, 1>(ended, {last});
    }
    blocks.write_last(page, last);
  }
  compress<Sha, 1>(ended, {last});
  store_hash();
  state[0].store(run.state);
  blocks.continue_run(run);
}

}  // namespace

namespace sha_ni {
void hash(RunningHash& run, const PagesToHash& pages) {
  hash_pages<sha_ni::Instructions>(run, pages);
}
}  // namespace sha_ni

#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("ssse3,sse4.1")
namespace sha_ni_emulated {
void hash(RunningHash& run, const PagesToHash& pages) { hash_pages<Model>(run, pages); }
}  // namespace sha_ni_emulated
#pragma GCC pop_options

}  // namespace kt::kvcache
#endif
