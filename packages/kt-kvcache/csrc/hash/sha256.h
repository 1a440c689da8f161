// SPDX-License-Identifier: Apache-2.0
// SHA-256 (FIPS 180-4) of one page after another, as chain.py defines a page's message. Not a
// general SHA-256: messages come as the chain has them, each behind the hash of the one before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kt::kvcache {

inline constexpr size_t kHashBytes = 32;

// Pages without extras of one chain, in order.
struct PagesToHash {
  const uint8_t* parent;  // hash before the first page, kHashBytes
  const uint8_t* tokens;  // num_pages * page_tokens ids as u32 little-endian, unaligned
  size_t num_pages;
  uint32_t page_tokens;
  uint8_t* hashes;  // out: num_pages * kHashBytes
};

// One way to compute the same hashes, and whether this CPU has its instructions.
struct HashPath {
  const char* name;
  bool (*supported)();
  void (*hash)(const PagesToHash&);
};

// Best first. The last, "sha_ni_emulated", runs the code of "sha_ni" on a model of its three
// instructions: slow, never chosen but by name, it proves that code on machines without them.
const std::vector<HashPath>& hash_paths();

namespace sha_ni {
void hash(const PagesToHash&);
}
namespace sha_ni_emulated {
void hash(const PagesToHash&);
}
namespace avx512 {
void hash(const PagesToHash&);
}
namespace avx2 {
void hash(const PagesToHash&);
}
namespace portable {
void hash(const PagesToHash&);
}

}  // namespace kt::kvcache
