// SPDX-License-Identifier: Apache-2.0
// Checksums and copies of one run.
#include "run.h"

#include <sys/mman.h>

#include <algorithm>

namespace kt::kvcache {
namespace {

// The kernel pins a buffer page by page for every transfer, and hands the drive as many pieces:
// with pages of this size that is half the CPU time of reading and writing.
constexpr size_t kHugePage = 2 << 20;

}  // namespace

std::byte* Bounce::get(size_t n) {
  if (n > size_) {
    data_.reset();
    size_ = 0;
    const size_t align = n < kHugePage / 2 ? kAlign : kHugePage;
    const size_t size = (n + align - 1) / align * align;
    data_.reset(static_cast<std::byte*>(std::aligned_alloc(align, size)));
    if (data_ == nullptr) return nullptr;
    size_ = size;
    if (align == kHugePage) ::madvise(data_.get(), size, MADV_HUGEPAGE);  // it may refuse
  }
  return data_.get();
}

Transfer transfer_of(const Run& run, std::byte* data) {
  const Batch& batch = *run.batch;
  return {batch.is_read, batch.fds[run.first], data, run.num_bytes(), batch.offsets[run.first]};
}

void gather_run(const Run& run, std::byte* data) {
  const Batch& batch = *run.batch;
  std::vector<Row> rows;
  for (size_t i = run.first; i < run.last; ++i, data += batch.payload_bytes) {
    batch.rows(i, rows);
    copy_path().gather(rows, batch.extents(i), data, batch.page_sums(i));
  }
}

void finish_run(const Run& whole, std::byte* data, int32_t status) {
  const Batch& batch = *whole.batch;
  std::vector<Row> rows;
  for (size_t i = whole.first; i < whole.last; ++i, data += batch.payload_bytes) {
    int32_t& of_page = batch.statuses[i];
    of_page = status;
    if (status != 0 && whole.last - whole.first > 1)
      of_page = run(transfer_of({whole.batch, i, i + 1}, data));
    if (of_page != 0 || !batch.is_read) continue;
    if (!copy_path().verify(batch.extents(i), data, batch.page_sums(i))) {
      of_page = kChecksum;
      continue;
    }
    batch.rows(i, rows);
    scatter(rows, data);
  }
}

void fail_run(const Run& run, int32_t status) {
  int32_t* statuses = run.batch->statuses;
  std::fill(statuses + run.first, statuses + run.last, status);
}

}  // namespace kt::kvcache
