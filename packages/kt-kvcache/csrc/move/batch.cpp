// SPDX-License-Identifier: Apache-2.0
// How a batch falls into runs.
#include "batch.h"

namespace kt::kvcache {
namespace {

// Consecutive pages travel in one call up to this size. More gains nothing on a drive that needs
// several calls in flight anyway, and would leave threads idle in small batches.
constexpr size_t kRunBytes = 2 << 20;

}  // namespace

std::vector<Run> runs_of(Batch& batch) {
  std::vector<Run> runs;
  size_t first = 0;
  for (size_t i = 1; i <= batch.num_pages(); ++i) {
    const bool goes_on = i < batch.num_pages() && batch.fds[i] == batch.fds[i - 1] &&
                         batch.offsets[i] == batch.offsets[i - 1] + batch.payload_bytes &&
                         (i + 1 - first) * batch.payload_bytes <= kRunBytes;
    if (goes_on) continue;
    runs.push_back({&batch, first, i});
    first = i;
  }
  return runs;
}

}  // namespace kt::kvcache
