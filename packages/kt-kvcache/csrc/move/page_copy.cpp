// SPDX-License-Identifier: Apache-2.0
// Which path this CPU can take, and the copy that is the same in all.
#include "page_copy.h"

#include <cstring>

namespace kt::kvcache {
namespace {

constexpr CopyPath kPaths[] = {
#if defined(__x86_64__)
    {"avx2", [] { return __builtin_cpu_supports("avx2") != 0; }, avx2::gather, avx2::verify},
#endif
    {"portable", [] { return true; }, portable::gather, portable::verify},
};

}  // namespace

const CopyPath& copy_path() {
  static const CopyPath& best = *[] {
    const CopyPath* path = kPaths;
    while (!path->supported()) ++path;
    return path;
  }();
  return best;
}

void scatter(std::span<const Row> rows, const std::byte* payload) {
  for (const Row& row : rows) {
    std::memcpy(row.data, payload, row.num_bytes);
    payload += row.num_bytes;
  }
}

}  // namespace kt::kvcache
