// SPDX-License-Identifier: Apache-2.0
// System calls and their short, interrupted and failed ends.
#include "move_run.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace kt::kvcache {
namespace {

// 0, an errno, or kShort where the file ends or takes no more. Goes on after a part only in whole
// blocks: O_DIRECT takes nothing else.
int32_t transfer(bool is_read, int fd, std::byte* data, size_t n, uint64_t offset) {
  while (n > 0) {
    const auto at = static_cast<off_t>(offset);
    const ssize_t moved = is_read ? ::pread(fd, data, n, at) : ::pwrite(fd, data, n, at);
    if (moved < 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    auto done = static_cast<size_t>(moved);
    if (done < n) done -= done % kAlign;
    if (done == 0) return kShort;
    data += done, n -= done, offset += done;
  }
  return 0;
}

}  // namespace

std::byte* Bounce::get(size_t n) {
  if (n > size_) {
    data_.reset();
    size_ = 0;
    data_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlign, n)));
    if (data_ == nullptr) return nullptr;
    size_ = n;
  }
  return data_.get();
}

void move_run(const Run& run, Bounce& bounce) {
  const Batch& batch = *run.batch;
  const CopyPath& path = copy_path();
  const size_t payload = batch.payload_bytes;
  int32_t* statuses = batch.statuses;
  std::byte* data = bounce.get(run.num_bytes());
  if (data == nullptr) {
    std::fill(statuses + run.first, statuses + run.last, ENOMEM);
    return;
  }
  std::vector<Row> rows;
  if (!batch.is_read)
    for (size_t i = run.first; i < run.last; ++i) {
      batch.rows(i, rows);
      path.gather(rows, batch.extents(i), data + (i - run.first) * payload, batch.page_sums(i));
    }
  const int32_t status = transfer(batch.is_read, batch.fds[run.first], data, run.num_bytes(),
                                  batch.offsets[run.first]);
  for (size_t i = run.first; i < run.last; ++i) {
    std::byte* page = data + (i - run.first) * payload;
    statuses[i] = status;
    if (status != 0 && run.last - run.first > 1)
      statuses[i] = transfer(batch.is_read, batch.fds[i], page, payload, batch.offsets[i]);
    if (statuses[i] != 0 || !batch.is_read) continue;
    if (!path.verify(batch.extents(i), page, batch.page_sums(i))) {
      statuses[i] = kChecksum;
      continue;
    }
    batch.rows(i, rows);
    scatter(rows, page);
  }
}

}  // namespace kt::kvcache
