// SPDX-License-Identifier: Apache-2.0
// The path for any CPU.
#include "constants.h"
#include "run_blocks.h"

namespace kt::kvcache::portable {

inline uint32_t rotated(uint32_t x, int n) { return x >> n | x << (32 - n); }

// One round.
inline void round(uint32_t a, uint32_t b, uint32_t& d, uint32_t e, uint32_t f, uint32_t g,
                  uint32_t& h, uint32_t& ab, uint32_t wk) {
  h += wk + (g ^ (e & (f ^ g))) + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25));
  d += h;
  const uint32_t bc = ab;
  ab = a ^ b;
  h += (b ^ (ab & bc)) + (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22));
}

#include "schedules-inl.h"
#include "lanes-inl.h"
#include "rounds-inl.h"
#include "pages-inl.h"

void hash(RunningHash& run, const PagesToHash& pages) { hash_pages(run, pages); }

}  // namespace kt::kvcache::portable
