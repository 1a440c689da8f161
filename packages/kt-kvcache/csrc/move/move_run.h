// SPDX-License-Identifier: Apache-2.0
// One run between file and memory, on the calling thread.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

#include "batch.h"

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

// Moves the run and sets its pages' statuses. Where the run fails as a whole, each page is tried
// alone, so that good ones survive. A page read is in memory only if it verified.
void move_run(const Run&, Bounce&);

}  // namespace kt::kvcache
