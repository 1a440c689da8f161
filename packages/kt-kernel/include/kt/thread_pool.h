// SPDX-License-Identifier: Apache-2.0
// Worker threads for SPMD jobs: every worker runs the same function and meets the others at barriers.
// Owned by the caller; no global pool. Workers sleep when there is no job (short adaptive spin only).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace kt {

class ThreadPool;

// One worker's view of the running job. Valid only inside the job.
class Worker {
 public:
  int id() const { return id_; }
  int num_workers() const { return num_workers_; }

  // Meets all workers; everything written before is visible after. Throws (an internal type that the pool swallows)
  // once any worker of the job has thrown, so nobody waits for a dead one.
  void barrier();

  // Hands out [0, count) in chunks of `grain` to whichever worker is free, then waits at a barrier.
  // Which worker runs a chunk is unspecified: results must not depend on it.
  template <class Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    int64_t begin, end;
    begin_region();
    while (next_chunk(count, grain, &begin, &end)) body(begin, end);
    barrier();
  }

  // Scratch of at least `bytes`, 64-byte aligned, shared by the workers of this job, one per `slot`; grown between
  // jobs of this pool and never shrunk. All workers must call it with equal arguments; contains a barrier.
  std::byte* shared_scratch(int slot, size_t bytes);

 private:
  friend class ThreadPool;
  void begin_region();
  bool next_chunk(int64_t count, int64_t grain, int64_t* begin, int64_t* end);
  ThreadPool* pool_ = nullptr;
  int id_ = 0;
  int num_workers_ = 1;
  uint32_t region_ = 0;  // index of the current parallel_for, equal on all workers
};

using Job = std::function<void(Worker&)>;

class ThreadPool {
 public:
  // num_threads 0: physical cores ∩ CPU affinity ∩ cgroup quota (at least 1). cores: CPU ids to pin to, or empty (no pin).
  explicit ThreadPool(int num_threads = 0, std::vector<int> cores = {});
  ~ThreadPool();  // finishes queued jobs first
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Queue a job; tickets finish in FIFO order. Thread-safe.
  uint64_t submit(Job job);
  bool done(uint64_t ticket) const;
  // Block until the ticket's job has finished; rethrows the first exception of its workers (once).
  void wait(uint64_t ticket);
  void run(Job job) { wait(submit(std::move(job))); }

  // How often each op ran on this pool since it was made: {"attention": 120, …}. Ops call count() once per run.
  void count(const char* op);
  std::map<std::string, uint64_t> op_counts() const;

 private:
  friend class Worker;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kt
