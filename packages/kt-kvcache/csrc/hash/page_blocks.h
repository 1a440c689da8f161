// SPDX-License-Identifier: Apache-2.0
// The 64-byte blocks of a page's padded message; no hashing. All but a page's first block are
// known before the hash of the page before it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>

#include "sha256.h"

namespace kt::kvcache {

static_assert(std::endian::native == std::endian::little, "token ids are copied as they lie");

class PageBlocks {
 public:
  static constexpr size_t kBlock = 64;

  explicit PageBlocks(const PagesToHash& pages)
      : pages_(pages),
        token_bytes_(size_t{4} * pages.page_tokens),
        message_bytes_(kTokens + token_bytes_ + kNoExtras),
        num_blocks_((message_bytes_ + kPadding + kBlock - 1) / kBlock) {}

  size_t num_blocks() const { return num_blocks_; }

  // Block 0 of `page`, which starts with 0x01, the hash before it and the number of tokens.
  void write_first(size_t page, const uint8_t* parent, uint8_t* out) const {
    constexpr size_t kRest = kBlock - kTokens;
    if (token_bytes_ >= kRest)  // a copy of constant size; the message does not end in this block
      std::memcpy(out + kTokens, pages_.tokens + page * token_bytes_, kRest);
    else
      write(page, 0, out);
    out[0] = 1;
    std::memcpy(out + 1, parent, kHashBytes);
    std::memcpy(out + 1 + kHashBytes, &pages_.page_tokens, sizeof(pages_.page_tokens));
  }

  // Any block; of block 0 what follows the header.
  void write(size_t page, size_t block, uint8_t* out) const {
    const size_t begin = block * kBlock;
    const uint8_t* tokens = pages_.tokens + page * token_bytes_;
    if (begin >= kTokens && begin + kBlock <= kTokens + token_bytes_) {  // nearly all blocks
      std::memcpy(out, tokens + (begin - kTokens), kBlock);
      return;
    }
    const size_t skip = begin < kTokens ? kTokens - begin : 0;  // bytes before the tokens
    const size_t from = begin + skip - kTokens;
    const size_t n = from < token_bytes_ ? std::min(token_bytes_ - from, kBlock - skip) : 0;
    if (n < kBlock - skip) std::memset(out, 0, kBlock);
    std::memcpy(out + skip, tokens + from, n);
    if (message_bytes_ - begin < kBlock) out[message_bytes_ - begin] = 0x80;
    if (block + 1 == num_blocks_) {
      const uint64_t bits = __builtin_bswap64(uint64_t{message_bytes_} * 8);
      std::memcpy(out + kBlock - sizeof(bits), &bits, sizeof(bits));
    }
  }

 private:
  static constexpr size_t kTokens = 1 + kHashBytes + 4;  // offset of the tokens
  static constexpr size_t kNoExtras = 2;                 // u16 0
  static constexpr size_t kPadding = 1 + 8;              // 0x80 and the length

  const PagesToHash& pages_;
  size_t token_bytes_;
  size_t message_bytes_;
  size_t num_blocks_;
};

// Blocks whose schedules are computed together: as many as a 256-bit vector has words.
inline constexpr int kLanes = 8;

// Word t plus its constant, of each of these blocks.
struct Schedules {
  alignas(64) uint32_t wk[64][kLanes];
};

}  // namespace kt::kvcache
