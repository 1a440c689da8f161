// SPDX-License-Identifier: Apache-2.0
// Worker: the barrier and the hand-out of chunks inside a job.
#include "worker.h"

#include <algorithm>

#include "kt/rounding.h"

namespace kt {
int Worker::num_nodes() const { return static_cast<int>(sync_->shares.size()); }

void Worker::barrier() {
  Sync& s = *sync_;
  const uint32_t generation = s.generation.load(std::memory_order_acquire);
  if (s.failed.load(std::memory_order_acquire)) throw Abandoned{};
  if (s.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == num_workers_) {
    s.arrived.store(0, std::memory_order_relaxed);
    s.restart_chunks();
    s.generation.fetch_add(1, std::memory_order_acq_rel);
    s.generation.notify_all();
  } else {
    await_change(s.generation, generation, s.awake);
  }
  if (s.failed.load(std::memory_order_acquire)) throw Abandoned{};
}

// On one node, and for one row, this and next_chunk divide nothing: a chunk may be 2 us of work.
void Worker::enter_share(Chunk& chunk) const {
  chunk.end_column = chunk.columns;
  if (num_nodes() > 1) {
    const Sync::Share& share = sync_->shares[chunk.node];
    const int64_t chunks = ceil_div(chunk.columns, chunk.grain);
    chunk.first = chunks * share.first_worker / num_workers_;
    chunk.end_column =
        std::min(chunk.columns, chunks * share.last_worker / num_workers_ * chunk.grain);
  }
  if (chunk.rows != 1) {
    const int64_t columns = chunk.end_column - chunk.first * chunk.grain;
    chunk.per_row = ceil_div(columns, chunk.grain);
  }
}

bool Worker::next_chunk(Chunk& chunk) {
  for (;;) {
    std::atomic<int64_t>& next = sync_->shares[chunk.node].next_chunk;
    int64_t index = next.fetch_add(1, std::memory_order_relaxed);
    if (chunk.rows != 1) {
      chunk.row = chunk.per_row > 0 ? index / chunk.per_row : chunk.rows;
      index -= chunk.row * chunk.per_row;
    }
    chunk.begin = (chunk.first + index) * chunk.grain;
    chunk.end = std::min(chunk.begin + chunk.grain, chunk.end_column);
    if (chunk.row < chunk.rows && chunk.begin < chunk.end_column) return true;
    chunk.node = chunk.node + 1 == num_nodes() ? 0 : chunk.node + 1;
    if (chunk.node == node_) return false;
    enter_share(chunk);
  }
}

}  // namespace kt
