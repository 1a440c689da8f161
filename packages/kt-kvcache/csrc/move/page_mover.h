// SPDX-License-Identifier: Apache-2.0
// Threads that move batches of pages, reads before writes, within a bound of bytes in flight.
// Whoever wants to know of ends waits for them; nothing is called back from these threads.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "batch.h"

namespace kt::kvcache {

class PageMover {
 public:
  // Starts no thread before the first batch.
  PageMover(size_t num_threads, size_t inflight_bytes);
  ~PageMover() { close(); }

  // Whether this is a child of the process that made the mover. It has none of the threads, and
  // may not even destroy the object, which waits for those that wait in it.
  bool forked() const;

  // Of at least one page. Throws std::invalid_argument if closed or forked.
  void submit(std::unique_ptr<Batch>);

  // Waits for ended batches; empty once the mover is closed and there will be none.
  std::vector<std::unique_ptr<Batch>> wait();

  // No more batches; waits for those submitted. Idempotent.
  void close();

 private:
  void work();
  bool take(Run&);

  const size_t num_threads_;
  const size_t inflight_limit_;
  const pid_t owner_;
  std::mutex mutex_;
  std::condition_variable queued_;  // a run was queued or bytes in flight became less, or closing
  std::condition_variable ended_;   // a batch ended, or all have and the mover is closed
  std::deque<Run> reads_, writes_;
  size_t inflight_bytes_ = 0;
  size_t num_batches_ = 0;  // submitted and not ended
  std::vector<std::unique_ptr<Batch>> done_;
  std::vector<std::thread> threads_;
  bool closed_ = false;
};

}  // namespace kt::kvcache
