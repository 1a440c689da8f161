// SPDX-License-Identifier: Apache-2.0
// A run's pages on `schedule`, `compress` and `compress_lanes` of the namespace it is included in:
// no include guard, no headers.

// Pages before their ends: the state after the whole blocks of each, in place of its hash. This is
// all that has to wait for the block before.
class WholeBlocks {
 public:
  WholeBlocks(const RunBlocks& blocks, size_t num_pages)
      : blocks_(blocks), num_blocks_(blocks.end_of(num_pages - 1)) {}

  void hash_to_end_of(size_t page, uint32_t (&state)[8]) {
    for (const size_t end = blocks_.end_of(page); next_ < end; ++next_) {
      if (next_ % kLanes == 0) {
        const uint8_t* ahead[kLanes];
        for (size_t i = 0; i < kLanes; ++i)
          ahead[i] = blocks_.block(std::min(next_ + i, num_blocks_ - 1));
        schedule(ahead, schedules_);
      }
      compress(state, schedules_, static_cast<int>(next_ % kLanes));
    }
  }

 private:
  const RunBlocks& blocks_;
  size_t num_blocks_;
  size_t next_ = 0;
  Schedules schedules_;
};

// The last blocks of kLanes messages, from the states in place of their hashes.
class LastBlocks {
 public:
  explicit LastBlocks(const RunBlocks& blocks) : blocks_(blocks) {
    for (int i = 0; i < kLanes; ++i) each_[i] = last_[i];
  }

  void hash(size_t first_page, size_t num_pages, uint8_t* hashes) {
    for (size_t i = 0; i < num_pages; ++i) {
      if (blocks_.ends_twice(first_page + i)) {
        blocks_.write_end(first_page + i, last_[i]);
        hash_alone(last_[i], hashes + i * kHashBytes);
      }
      if (first_page == 0 || !blocks_.ends_are_alike())
        blocks_.write_last(first_page + i, last_[i]);
      else
        blocks_.write_length(first_page + i, last_[i]);
    }
    schedule(each_, schedules_);
    compress_lanes(hashes, num_pages, schedules_);
  }

 private:
  void hash_alone(const uint8_t* block, uint8_t* hash) {
    const uint8_t* blocks[kLanes];
    std::fill_n(blocks, kLanes, block);
    schedule(blocks, schedules_);
    uint32_t state[8];
    std::memcpy(state, hash, sizeof(state));
    compress(state, schedules_, 0);
    std::memcpy(hash, state, sizeof(state));
  }

  const RunBlocks& blocks_;
  Schedules schedules_;
  uint8_t last_[kLanes][kBlockBytes] = {};
  const uint8_t* each_[kLanes];
};

inline void hash_pages(RunningHash& run, const PagesToHash& pages) {
  const RunBlocks blocks(run, pages);
  WholeBlocks whole(blocks, pages.num_pages);
  LastBlocks last(blocks);
  for (size_t first = 0; first < pages.num_pages; first += kLanes) {
    const size_t n = std::min(size_t{kLanes}, pages.num_pages - first);
    uint8_t* hashes = pages.hashes + first * kHashBytes;
    for (size_t i = 0; i < n; ++i) {
      whole.hash_to_end_of(first + i, run.state);
      std::memcpy(hashes + i * kHashBytes, run.state, kHashBytes);
    }
    last.hash(first, n, hashes);
  }
  blocks.continue_run(run);
}
