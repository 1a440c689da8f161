// SPDX-License-Identifier: Apache-2.0
// What is done to a run's bytes before and after they move, and the buffer they move through. It
// queues nothing and waits for nothing.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

#include "batch.h"
#include "io/transfer.h"

namespace kt::kvcache {

// An aligned buffer that grows; it keeps nothing when it does.
class Bounce {
 public:
  // At least n bytes; nullptr if there is no memory.
  std::byte* get(size_t n);

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t size_ = 0;
};

Transfer transfer_of(const Run&, std::byte* data);

// Before: fills `data` with what is written, and the batch's checksums.
void gather_run(const Run&, std::byte* data);

// After: sets its pages' statuses, given that of the whole. Where the run failed as a whole, each
// page is tried alone, so that good ones survive. A page read is in memory only if it verified.
void finish_run(const Run&, std::byte* data, int32_t status);

// Instead of both: there is no memory to move it through.
void fail_run(const Run&, int32_t status);

}  // namespace kt::kvcache
