// SPDX-License-Identifier: Apache-2.0
// Checksums in what vectors the baseline has.
#include <algorithm>
#include <cstring>

#include "page_copy.h"
#include "xxh3_headers.h"

namespace kt::kvcache::portable {
#include "xxhash/xxhash.h"
#include "page_copy-inl.h"
}  // namespace kt::kvcache::portable
