// SPDX-License-Identifier: Apache-2.0
// The paths for AVX2 and BMI2, and for AVX-512, which has rotations of vectors, for the schedules
// only: compilers given all of it for the rounds as well keep spilled words in vectors.
#include "constants.h"
#include "run_blocks.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2")
namespace kt::kvcache::avx2 {

// One round. In assembly, because a round is bound by the number of its instructions and by their
// ports: sums that are lea leave the two ports that rotate alone. Compiled C++ takes a tenth more.
[[gnu::always_inline]] inline void round(uint32_t a, uint32_t b, uint32_t& d, uint32_t e,
                                         uint32_t f, uint32_t g, uint32_t& h, uint32_t& ab,
                                         const uint32_t& wk) {
  uint32_t x, y, z, next_ab;
  asm("addl %[wk], %[h]\n\t"
      "movl %[f], %[x]\n\t"
      "andl %[e], %[x]\n\t"
      "rorx $25, %[e], %[y]\n\t"
      "rorx $11, %[e], %[z]\n\t"
      "leal (%q[h],%q[x]), %[h]\n\t"
      "andn %[g], %[e], %[x]\n\t"
      "xorl %[z], %[y]\n\t"
      "rorx $6, %[e], %[z]\n\t"
      "leal (%q[h],%q[x]), %[h]\n\t"
      "xorl %[z], %[y]\n\t"
      "movl %[a], %[next_ab]\n\t"
      "rorx $22, %[a], %[x]\n\t"
      "leal (%q[h],%q[y]), %[h]\n\t"
      "xorl %[b], %[next_ab]\n\t"
      "rorx $13, %[a], %[z]\n\t"
      "rorx $2, %[a], %[y]\n\t"
      "leal (%q[d],%q[h]), %[d]\n\t"
      "andl %[next_ab], %[ab]\n\t"
      "xorl %[x], %[z]\n\t"
      "xorl %[b], %[ab]\n\t"
      "xorl %[y], %[z]\n\t"
      "leal (%q[h],%q[ab]), %[h]\n\t"
      "leal (%q[h],%q[z]), %[h]"
      : [h] "+&r"(h), [d] "+&r"(d), [ab] "+&r"(ab), [x] "=&r"(x), [y] "=&r"(y), [z] "=&r"(z),
        [next_ab] "=&r"(next_ab)
      : [a] "r"(a), [b] "r"(b), [e] "r"(e), [f] "r"(f), [g] "r"(g), [wk] "m"(wk)
      : "cc");
  ab = next_ab;
}

#include "schedules-inl.h"
#include "lanes-inl.h"
#include "rounds-inl.h"
#include "pages-inl.h"

void hash(RunningHash& run, const PagesToHash& pages) { hash_pages(run, pages); }

}  // namespace kt::kvcache::avx2
#pragma GCC pop_options

namespace kt::kvcache::avx512 {

#pragma GCC push_options
#pragma GCC target("avx2,avx512f,avx512vl")
#include "schedules-inl.h"
#include "lanes-inl.h"
#pragma GCC pop_options

using avx2::compress;

#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2")
#include "pages-inl.h"

void hash(RunningHash& run, const PagesToHash& pages) { hash_pages(run, pages); }
#pragma GCC pop_options

}  // namespace kt::kvcache::avx512
#endif
