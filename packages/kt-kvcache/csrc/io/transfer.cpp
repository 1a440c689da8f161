// SPDX-License-Identifier: Apache-2.0
// System calls and their short, interrupted and failed ends.
#include "transfer.h"

#include <unistd.h>

#include <cerrno>

namespace kt::kvcache {

int32_t run(Transfer t) {
  for (;;) {
    const auto at = static_cast<off_t>(t.offset);
    const ssize_t moved =
        t.is_read ? ::pread(t.fd, t.data, t.size, at) : ::pwrite(t.fd, t.data, t.size, at);
    if (moved >= 0) return go_on(t, moved);
    if (errno != EINTR) return errno;
  }
}

int32_t go_on(Transfer t, int64_t result) {
  // Says not that the transfer failed, but that it was not made.
  if (result == -EINTR || result == -EAGAIN) return run(t);
  if (result < 0) return static_cast<int32_t>(-result);
  auto done = static_cast<size_t>(result);
  if (done == t.size) return 0;
  done -= done % kAlign;  // O_DIRECT takes nothing else than whole blocks
  if (done == 0) return kShort;
  t.data += done, t.size -= done, t.offset += done;
  return run(t);
}

}  // namespace kt::kvcache
