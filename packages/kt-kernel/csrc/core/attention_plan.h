// SPDX-License-Identifier: Apache-2.0
// Which worker attends to which query rows and keys, and in which memory. No arithmetic: any
// partition gives the same bits.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kt/attention.h"
#include "kt/thread_pool.h"

namespace kt {

class AttentionPlan {
 public:
  // Takes all memory that a run of at most `rows` query rows needs.
  AttentionPlan(ThreadPool& pool, const AttentionArgs& args, int64_t rows);

  // Checks the bookkeeping of the first `live` rows, throwing what is wrong, and partitions them.
  // One worker, before a barrier; the arrays are not read for it again.
  void make(int64_t live);

  int64_t units() const { return units_; }    // for attention
  int64_t merges() const { return merges_; }  // for merge_attention, when all units are done
  AttentionArgs unit(int64_t index, int worker) const;
  AttentionArgs merge(int64_t index, int worker) const;

 private:
  struct Part {
    AttentionTile tile;
    int first_split = 0, end_split = 0;
    int64_t first_unit = 0, first_merge = 0;
    int64_t partials = -1;  // where, in floats; < 0: a unit merges its own splits
  };

  void check(int64_t live) const;
  void cut_into_tiles(int64_t live);
  void share_out();
  AttentionArgs args_of(const Part& part, int64_t kv_head, int worker) const;
  int64_t split_floats(const Part& part) const;  // of one split and KV head

  AttentionArgs args_;
  int workers_;
  int tile_rows_;
  int64_t work_floats_ = 0, partial_floats_ = 0;
  std::shared_ptr<const AlignedBuffer> memory_;
  std::vector<Part> parts_;
  int64_t units_ = 0, merges_ = 0;
};

}  // namespace kt
