// SPDX-License-Identifier: Apache-2.0
// Worker threads for SPMD jobs: every worker runs the same function and meets the others at
// barriers. Owned by the caller; no global pool. Workers sleep when there is no job, after a short
// adaptive spin if there are spare cores or the last job's caller computed in a worker's place.
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
#include "kt/topology.h"

namespace kt {

class ThreadPool;

// One worker's view of the running job. Valid only inside the job.
class Worker {
 public:
  int id() const { return id_; }
  int num_workers() const { return num_workers_; }
  int node() const { return node_; }  // of this worker's memory, in [0, num_nodes)
  int num_nodes() const;              // memory nodes that have workers of this pool

  // Meets all workers; everything written before is visible after. Throws (an internal type that
  // the pool swallows) once any worker of the job has thrown, so nobody waits for a dead one.
  void barrier();

  // Hands out [0, count) in chunks of `grain` to whichever worker is free, then waits at a barrier.
  // Which worker runs a chunk is unspecified: results must not depend on it.
  template <class Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    parallel_for(1, count, grain, [&](int64_t, int64_t begin, int64_t end) { body(begin, end); });
  }

  // body(i, begin, end) for each i of [0, rows) and each chunk of [0, columns), i ascending. On
  // several memory nodes every node owns a share of the columns, the same in each row and in each
  // call with as many columns and the same grain: its workers take that share first and then help
  // the other nodes. Memory that one such loop writes first and the next one reads is thus local.
  template <class Body>
  void parallel_for(int64_t rows, int64_t columns, int64_t grain, Body&& body) {
    Chunk chunk{rows, columns, grain, node_};
    for (enter_share(chunk); next_chunk(chunk);) body(chunk.row, chunk.begin, chunk.end);
    barrier();
  }

 private:
  friend class ThreadPool;
  struct Sync;  // barrier and chunk counters of a pool
  struct Chunk {
    int64_t rows, columns, grain;
    int node;                        // whose share this worker takes from
    int64_t first = 0, per_row = 0;  // that share, in chunks
    int64_t end_column = 0;
    int64_t row = 0, begin = 0, end = 0;
  };
  Worker(Sync& sync, int id, int num_workers, int node)
      : sync_(&sync), id_(id), num_workers_(num_workers), node_(node) {}
  void enter_share(Chunk& chunk) const;
  bool next_chunk(Chunk& chunk);

  Sync* sync_;
  int id_;
  int num_workers_;
  int node_;
};

using Job = std::function<void(Worker&)>;

class ThreadPool {
 public:
  // num_threads 0: physical cores, within CPU affinity and cgroup quota, at least 1; with cores,
  // their number. cores: CPU ids to pin the workers to (at least num_threads of them), or empty:
  // the system places them, on a machine with several memory nodes within the node of each. A CPU
  // named twice is refused: its two workers would wait for each other at every barrier.
  explicit ThreadPool(int num_threads = 0, const std::vector<int>& cores = {},
                      const Topology& topology = read_topology(allowed_cpus()));
  // Finishes queued jobs first. Threads do not survive fork(): in a child process every call below
  // that needs them throws, and the destructor leaves the parent's threads alone.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;
  // Throws `[op] a pool's threads do not survive fork() …` in a forked child.
  void require_owner(const char* op) const;

  // Queue a job; jobs run one at a time, in FIFO order. What the job captured is destroyed, by who
  // ran its last part, before the ticket is done. Thread-safe.
  uint64_t submit(Job job);
  bool done(uint64_t ticket) const;
  // Block until the ticket's job has finished; rethrows the first exception of its workers (once).
  // Not from a job.
  void wait(uint64_t ticket);
  // Submits and waits. If nothing else runs and the calling thread is on one of the pool's CPUs, it
  // computes the part of the worker there, instead of waking that worker and going to sleep: two
  // wake-ups less, 20 to 40 us on a virtual machine. Thread-safe; not from a job.
  void run(Job job);

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
