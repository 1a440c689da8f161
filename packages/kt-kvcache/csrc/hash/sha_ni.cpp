// SPDX-License-Identifier: Apache-2.0
// The path for the SHA instructions, and the same code on a model of them.
#include "constants.h"
#include "page_blocks.h"

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

template <class Sha>
inline void compress(__m128i& abef, __m128i& cdgh, const uint8_t* block) {
  const __m128i swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
  __m128i w[4];
  for (int i = 0; i < 4; ++i)
    w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block) + i), swap);
  const __m128i abef0 = abef, cdgh0 = cdgh;
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {  // four rounds
    __m128i &w0 = w[i & 3], &w4 = w[(i + 1) & 3], &w8 = w[(i + 2) & 3], &w12 = w[(i + 3) & 3];
    const auto* k = reinterpret_cast<const __m128i*>(kRoundConstants) + i;
    const __m128i wk = _mm_add_epi32(w0, _mm_load_si128(k));
    cdgh = Sha::rounds(cdgh, abef, wk);
    abef = Sha::rounds(abef, cdgh, _mm_shuffle_epi32(wk, 0x0e));
    const __m128i w9 = _mm_alignr_epi8(w12, w8, 4);
    if (i < 12) w0 = Sha::message2(_mm_add_epi32(Sha::message1(w0, w4), w9), w12);
  }
  abef = _mm_add_epi32(abef, abef0);
  cdgh = _mm_add_epi32(cdgh, cdgh0);
}

template <class Sha>
inline void hash_pages(const PagesToHash& pages) {
  const PageBlocks blocks(pages);
  const uint32_t* s = kInitialState;
  const uint8_t* parent = pages.parent;
  for (size_t page = 0; page < pages.num_pages; ++page) {
    __m128i abef = _mm_set_epi32(int(s[0]), int(s[1]), int(s[4]), int(s[5]));
    __m128i cdgh = _mm_set_epi32(int(s[2]), int(s[3]), int(s[6]), int(s[7]));
    uint8_t raw[64];
    blocks.write_first(page, parent, raw);
    compress<Sha>(abef, cdgh, raw);
    for (size_t block = 1; block < blocks.num_blocks(); ++block) {
      blocks.write(page, block, raw);
      compress<Sha>(abef, cdgh, raw);
    }
    const __m128i swap = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    abef = _mm_shuffle_epi8(abef, swap), cdgh = _mm_shuffle_epi8(cdgh, swap);
    auto* hash = reinterpret_cast<__m128i*>(pages.hashes + page * kHashBytes);
    _mm_storeu_si128(hash, _mm_unpacklo_epi64(abef, cdgh));
    _mm_storeu_si128(hash + 1, _mm_unpackhi_epi64(abef, cdgh));
    parent = pages.hashes + page * kHashBytes;
  }
}

}  // namespace

namespace sha_ni {
void hash(const PagesToHash& pages) { hash_pages<sha_ni::Instructions>(pages); }
}  // namespace sha_ni

#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("ssse3,sse4.1")
namespace sha_ni_emulated {
void hash(const PagesToHash& pages) { hash_pages<Model>(pages); }
}  // namespace sha_ni_emulated
#pragma GCC pop_options

}  // namespace kt::kvcache
#endif
