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
#include "io/ring.h"
#include "run.h"

namespace kt::kvcache {

class PageMover {
 public:
  // Starts no thread before the first batch. With a ring, the kernel has as many runs in flight as
  // fit, and threads only gather, verify and scatter; without, each thread has one.
  // Throws std::system_error if the system refuses a ring.
  PageMover(size_t num_threads, size_t inflight_bytes, bool with_ring);
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
  // A run on its way, and its buffer, which outlives it for the next.
  struct Flight {
    Run run;
    Bounce bounce;
    std::byte* data;
    int64_t result;  // of the ring's call, once it has landed
  };
  using Lock = std::unique_lock<std::mutex>;

  void work();
  void wake_another();
  bool next_fits() const;
  // Each does one step, with the lock given up meanwhile.
  void begin(Lock&);
  void land(Lock&);
  void finish(Lock&);

  void end(Flight&);

  const size_t num_threads_;
  const size_t inflight_limit_;
  const pid_t owner_;
  std::unique_ptr<Ring> ring_;
  std::mutex mutex_;
  std::condition_variable queued_;  // there may be something to do for a thread, or closing
  std::condition_variable ended_;   // a batch ended, or all have and the mover is closed
  std::deque<Run> reads_, writes_;
  std::deque<Flight> flights_;  // all there ever were: their buffers stay
  std::vector<Flight*> spare_;  // those without a run
  std::deque<Flight*> landed_;  // by the ring, and not finished
  // Begun in the ring and not landed; may be less for a moment, while they are counted.
  int64_t num_flying_ = 0;
  bool landing_ = false;  // a thread waits in the ring
  size_t inflight_bytes_ = 0;
  size_t num_batches_ = 0;  // submitted and not ended
  std::vector<std::unique_ptr<Batch>> done_;
  std::vector<std::thread> threads_;
  bool closed_ = false;
};

}  // namespace kt::kvcache
