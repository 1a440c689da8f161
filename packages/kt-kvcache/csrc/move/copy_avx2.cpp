// SPDX-License-Identifier: Apache-2.0
// Checksums in 256-bit vectors.
#include <algorithm>
#include <cstring>

#include "page_copy.h"
#include "xxh3_headers.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2")
#define XXH_VECTOR 2  // XXH_AVX2

namespace kt::kvcache::avx2 {
#include "xxhash/xxhash.h"
#include "page_copy-inl.h"
}  // namespace kt::kvcache::avx2

#pragma GCC pop_options
#endif
