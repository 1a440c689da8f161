// SPDX-License-Identifier: Apache-2.0
// A chain's pages on `schedule`, `compress` and `compress_block` of the namespace it is included
// in: no include guard, no headers.

inline void hash_pages(const PagesToHash& pages) {
  const PageBlocks blocks(pages);
  const size_t num_blocks = blocks.num_blocks();
  Schedules schedules;
  int lane = kLanes;                       // of the next block
  size_t ahead_page = 0, ahead_block = 1;  // next block to be scheduled
  uint8_t raw[kLanes][64] = {};
  const uint8_t* parent = pages.parent;
  for (size_t page = 0; page < pages.num_pages; ++page) {
    uint32_t state[8];
    std::memcpy(state, kInitialState, sizeof(state));
    uint8_t first[64];
    blocks.write_first(page, parent, first);
    compress_block(state, first);
    for (size_t block = 1; block < num_blocks; ++block) {
      if (lane == kLanes) {
        for (int i = 0; i < kLanes && ahead_page < pages.num_pages; ++i) {
          blocks.write(ahead_page, ahead_block, raw[i]);
          if (++ahead_block == num_blocks) ++ahead_page, ahead_block = 1;
        }
        schedule(raw, schedules);
        lane = 0;
      }
      compress(state, schedules, lane++);
    }
    uint8_t* hash = pages.hashes + page * kHashBytes;
    for (int i = 0; i < 8; ++i) {
      const uint32_t word = __builtin_bswap32(state[i]);
      std::memcpy(hash + 4 * i, &word, sizeof(word));
    }
    parent = hash;
  }
}
