// SPDX-License-Identifier: Apache-2.0
// Bytes between a file and a buffer, by plain system calls on the calling thread, and what their
// short, interrupted and failed ends mean.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kt::kvcache {

inline constexpr size_t kAlign = 4096;                 // of buffers, offsets and lengths
inline constexpr int32_t kShort = -1, kChecksum = -2;  // status of a page; 0 is good, more an errno

struct Transfer {
  bool is_read;
  int fd;
  std::byte* data;
  size_t size;
  uint64_t offset;
};

// Moves all of it: 0, an errno, or kShort where the file ends or takes no more.
int32_t run(Transfer);

// The same where a call made elsewhere has ended with `result`: bytes moved, or -errno.
int32_t go_on(Transfer, int64_t result);

}  // namespace kt::kvcache
