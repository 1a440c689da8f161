// SPDX-License-Identifier: Apache-2.0
// An op is an SPMD function; a Stream runs it at once, a Graph records it and replays all with one
// pool job. Eager and recorded ops are the same objects: replay cannot differ from eager execution.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "kt/thread_pool.h"

namespace kt {

struct Op {
  std::string name;                  // "attention"
  std::function<void(Worker&)> run;  // SPMD; ends at a barrier
};

class Stream {
 public:
  // num_rows: one int32 read when an op runs: rows at or beyond it are padding and are not
  // computed. Null: all rows live.
  explicit Stream(ThreadPool& pool, const int32_t* num_rows = nullptr)
      : pool_(&pool), num_rows_(num_rows) {}
  virtual ~Stream() = default;

  virtual void submit(Op op);  // runs now, blocks, rethrows
  ThreadPool& pool() const { return *pool_; }
  const int32_t* num_rows() const { return num_rows_; }

 protected:
  ThreadPool* pool_;
  const int32_t* num_rows_;
};

class Graph final : public Stream {
 public:
  using Stream::Stream;
  void submit(Op op) override;  // records; throws while another thread records or replays
  // Run all ops in order as one pool job. An op's exception becomes `[graph.replay] op 17
  // attention: …`; the graph stays usable. Not reentrant: throws if already replaying.
  void replay();
  size_t size() const { return ops_.size(); }

 private:
  std::vector<Op> ops_;
  std::mutex busy_;  // held while recording or replaying; never waited for
};

}  // namespace kt
