// SPDX-License-Identifier: Apache-2.0
// io_uring by its three system calls: reads and writes that the kernel has in flight. It owns
// neither buffers nor threads, and decides nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "transfer.h"

namespace kt::kvcache {

class Ring {
 public:
  struct Ended {
    void* tag;
    int32_t result;  // as of a call: bytes moved, or -errno
  };

  // Throws std::system_error where the system has none for us: it is too old, or forbids it
  // (containers' seccomp filters, the sysctl io_uring_disabled), or files or memory ran out.
  explicit Ring(uint32_t entries);
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // Starts one; thread-safe. No more than `entries` at a time. False if the system did not take
  // it. The thread must live until it has ended: the kernel cancels what a dead one began.
  bool submit(const Transfer&, void* tag);

  // Waits until one has ended, at least, and appends all that have. One caller at a time.
  void wait(std::vector<Ended>&);

 private:
  struct File {
    int fd = -1;
    ~File();
  };
  struct Mapping {
    std::byte* data = nullptr;
    size_t size = 0;
    ~Mapping();
    void map(const File&, size_t num_bytes, uint64_t what);
  };

  int enter(uint32_t to_submit, uint32_t min_ended, uint32_t flags);

  File file_;
  Mapping rings_, entries_;
  // In the kernel's and our memory both. We write the submissions' tail and the completions' head.
  uint32_t *submit_tail_, *ended_head_, *ended_tail_;
  uint32_t submit_mask_, ended_mask_;
  std::byte* ended_;
  std::mutex submitting_;
};

}  // namespace kt::kvcache
