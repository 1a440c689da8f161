// SPDX-License-Identifier: Apache-2.0
// What file_memory.h promises, on mmap and pread.
#include "kt/file_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "kt/aligned_buffer.h"
#include "kt/check.h"
#include "kt/thread_pool.h"

namespace kt {
namespace {

void read_exactly(const char* op, int fd, size_t offset, std::byte* to, size_t bytes) {
  while (bytes > 0) {
    const ssize_t got = pread(fd, to, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    KT_CHECK(op, got > 0, "file must be readable up to its end; got ",
             got == 0 ? "a file that became shorter" : std::strerror(errno), " at byte ", offset);
    offset += got;
    to += got;
    bytes -= got;
  }
}

}  // namespace

std::shared_ptr<std::byte> map_file(const char* op, const FileRange& range) {
  // From the file's beginning: huge pages need address and offset to agree, and pages of every size
  // begin there.
  const size_t length = range.offset + range.bytes;
  void* const at = mmap(nullptr, length, PROT_READ, MAP_SHARED, range.fd, 0);
  KT_CHECK(op, at != MAP_FAILED, "file must be one that can be mapped; got ", std::strerror(errno));
  madvise(at, length, MADV_HUGEPAGE);  // advice only: without them it is slower, not wrong
  return {static_cast<std::byte*>(at) + range.offset,
          [at, length](std::byte*) { munmap(at, length); }};
}

std::shared_ptr<std::byte> copy_file(const char* op, const FileRange& range, ThreadPool* pool) {
  // Long enough for a disk's full rate and to hide handing it out.
  constexpr int64_t kChunk = 8 << 20;
  const auto buffer = std::make_shared<AlignedBuffer>(range.bytes);
  const auto read = [&](int64_t begin, int64_t end) {
    read_exactly(op, range.fd, range.offset + begin, buffer->data() + begin, end - begin);
  };
  const int64_t bytes = static_cast<int64_t>(range.bytes);
  if (pool == nullptr)
    read(0, bytes);
  else
    pool->run([&](Worker& worker) { worker.parallel_for(bytes, kChunk, read); });
  return {buffer, buffer->data()};
}

}  // namespace kt
