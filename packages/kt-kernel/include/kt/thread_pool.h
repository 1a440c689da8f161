// SPDX-License-Identifier: Apache-2.0
// Worker threads for SPMD jobs: every worker runs the same function and meets the others at
// barriers. Owned by the caller; no global pool. Workers sleep when there is no job, after a short
// adaptive spin if there are spare cores.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kt/aligned_buffer.h"

namespace kt {

class ThreadPool;

// One worker's view of the running job. Valid only inside the job.
class Worker {
 public:
  int id() const { return id_; }
  int num_workers() const { return num_workers_; }

  // Meets all workers; everything written before is visible after. Throws (an internal type that
  // the pool swallows) once any worker of the job has thrown, so nobody waits for a dead one.
  void barrier();

  // Hands out [0, count) in chunks of `grain` to whichever worker is free, then waits at a barrier.
  // Which worker runs a chunk is unspecified: results must not depend on it.
  template <class Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    int64_t begin, end;
    while (next_chunk(count, grain, &begin, &end)) body(begin, end);
    barrier();
  }

 private:
  friend class ThreadPool;
  struct Sync;  // barrier and chunk counter of one job
  Worker(Sync& sync, int id, int num_workers) : sync_(&sync), id_(id), num_workers_(num_workers) {}
  bool next_chunk(int64_t count, int64_t grain, int64_t* begin, int64_t* end);

  Sync* sync_;
  int id_;
  int num_workers_;
};

using Job = std::function<void(Worker&)>;

class ThreadPool {
 public:
  // num_threads 0: physical cores, within CPU affinity and cgroup quota, at least 1; with cores,
  // their number. cores: CPU ids to pin the workers to (at least num_threads of them), or empty: no
  // pin. A CPU named twice is refused: its two workers would wait for each other at every barrier.
  explicit ThreadPool(int num_threads = 0, std::vector<int> cores = {});
  // Finishes queued jobs first. Threads do not survive fork(): in a child process every call below
  // that needs them throws, and the destructor leaves the parent's threads alone.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Queue a job; jobs run one at a time, in FIFO order. What the job captured is destroyed, on a
  // worker, before the ticket is done. Thread-safe.
  uint64_t submit(Job job);
  bool done(uint64_t ticket) const;
  // Block until the ticket's job has finished; rethrows the first exception of its workers (once).
  // Not from a job.
  void wait(uint64_t ticket);
  void run(Job job) { wait(submit(std::move(job))); }

  // At least `bytes` of scratch for the jobs of one owner. Jobs run one at a time, so all owners of
  // equal need share one buffer; its content does not last from job to job. Allocated here, never
  // while a job runs. Thread-safe.
  std::shared_ptr<const AlignedBuffer> scratch(size_t bytes);

  // The counter of an op, which adds one to it per run; lives as long as the pool. Looked up when
  // an op is built, because a replay runs hundreds of them.
  std::atomic<uint64_t>& counter(const char* op);
  // How often each op ran on this pool since it was made: {"attention": 120, …}.
  std::map<std::string, uint64_t> op_counts() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kt
