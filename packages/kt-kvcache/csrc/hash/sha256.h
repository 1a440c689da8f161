// SPDX-License-Identifier: Apache-2.0
// SHA-256 (FIPS 180-4) of a message that grows by pages, after each page of it: a run, as chain.py
// defines it. Not a general SHA-256: what is hashed begins with a whole block and ends with pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kt::kvcache {

inline constexpr size_t kHashBytes = 32;
inline constexpr size_t kBlockBytes = 64;

// A message so far: the state after its whole blocks, and the bytes that follow them. It may begin
// with a block that waits in `rest` as a whole.
struct RunningHash {
  uint32_t state[8];
  uint8_t rest[kBlockBytes];
  size_t num_rest;
  uint64_t num_bytes;  // of the message, with the rest
};

// Pages that continue a message.
struct PagesToHash {
  const uint8_t* tokens;  // num_pages * page_tokens ids as u32 little-endian, unaligned
  size_t num_pages;
  uint32_t page_tokens;
  uint8_t* hashes;  // out: num_pages * kHashBytes, each of the message up to its page's end
};

// One way to compute the same hashes, and whether this CPU has its instructions.
struct HashPath {
  const char* name;
  bool (*supported)();
  void (*hash)(RunningHash&, const PagesToHash&);
};

// Best first. The last, "sha_ni_emulated", runs the code of "sha_ni" on a model of its three
// instructions: slow, never chosen but by name, it proves that code on machines without them.
const std::vector<HashPath>& hash_paths();

namespace sha_ni {
void hash(RunningHash&, const PagesToHash&);
}
namespace sha_ni_emulated {
void hash(RunningHash&, const PagesToHash&);
}
namespace avx512 {
void hash(RunningHash&, const PagesToHash&);
}
namespace avx2 {
void hash(RunningHash&, const PagesToHash&);
}
namespace portable {
void hash(RunningHash&, const PagesToHash&);
}

}  // namespace kt::kvcache
