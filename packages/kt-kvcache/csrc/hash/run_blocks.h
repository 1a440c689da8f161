// SPDX-License-Identifier: Apache-2.0
// The 64-byte blocks of a message that pages continue, and those that end it after each page; no
// hashing.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>

#include "sha256.h"

namespace kt::kvcache {

static_assert(std::endian::native == std::endian::little, "token ids are hashed as they lie");

// Blocks count from the first that was not whole before these pages.
class RunBlocks {
 public:
  RunBlocks(const RunningHash& run, const PagesToHash& pages)
      : tokens_(pages.tokens),
        page_bytes_(size_t{4} * pages.page_tokens),
        num_rest_(run.num_rest),
        num_bytes_before_(run.num_bytes),
        num_token_bytes_(page_bytes_ * pages.num_pages) {
    std::memcpy(first_, run.rest, num_rest_);
    std::memcpy(first_ + num_rest_, tokens_, std::min(kBlockBytes - num_rest_, num_token_bytes_));
  }

  // Whole blocks up to the end of `page`.
  size_t end_of(size_t page) const { return offset_after(page) / kBlockBytes; }

  // The bytes of a block, all of them if it is whole.
  const uint8_t* block(size_t i) const {
    return i == 0 ? first_ : tokens_ + (i * kBlockBytes - num_rest_);
  }

  // Whether a message that ends after `page` leaves no room for its length in the block it ends in.
  bool ends_twice(size_t page) const {
    return offset_after(page) % kBlockBytes >= kBlockBytes - kLengthBytes;
  }

  // What follows the whole blocks of a message that ends after `page`, and the mark of its end.
  void write_end(size_t page, uint8_t* out) const {
    const size_t n = offset_after(page) % kBlockBytes;
    std::memset(out, 0, kBlockBytes);
    std::memcpy(out, block(end_of(page)), n);
    out[n] = 0x80;
  }

  // The last block of a message that ends after `page`; all of its end, but if it ends twice.
  void write_last(size_t page, uint8_t* out) const {
    if (ends_twice(page))
      std::memset(out, 0, kBlockBytes);
    else
      write_end(page, out);
    write_length(page, out);
  }

  // Whether the last blocks differ in their lengths only: pages end where blocks do.
  bool ends_are_alike() const {
    return num_rest_ % kBlockBytes == 0 && page_bytes_ % kBlockBytes == 0;
  }

  void write_length(size_t page, uint8_t* last) const {
    const uint64_t num_bytes = num_bytes_before_ + (page + 1) * page_bytes_;
    const uint64_t bits = __builtin_bswap64(num_bytes * 8);
    std::memcpy(last + kBlockBytes - kLengthBytes, &bits, kLengthBytes);
  }

  // The message continued by the pages; the state is the caller's.
  void continue_run(RunningHash& run) const {
    const size_t num_bytes = num_rest_ + num_token_bytes_;
    run.num_rest = num_bytes % kBlockBytes;
    std::memcpy(run.rest, block(num_bytes / kBlockBytes), run.num_rest);
    run.num_bytes = num_bytes_before_ + num_token_bytes_;
  }

 private:
  static constexpr size_t kLengthBytes = sizeof(uint64_t);  // in bits, big-endian

  size_t offset_after(size_t page) const { return num_rest_ + (page + 1) * page_bytes_; }

  const uint8_t* tokens_;
  size_t page_bytes_;
  size_t num_rest_;
  uint64_t num_bytes_before_;
  size_t num_token_bytes_;
  uint8_t first_[kBlockBytes] = {};
};

// Blocks whose schedules are computed together: as many as a 256-bit vector has words.
inline constexpr int kLanes = 8;

// Word t plus its constant, of each of these blocks.
struct Schedules {
  alignas(64) uint32_t wk[64][kLanes];
};

}  // namespace kt::kvcache
