// SPDX-License-Identifier: Apache-2.0
// What the workers of one pool share inside a job, and waiting for a number to change. Between
// jobs: thread_pool.cpp.
#pragma once

#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <vector>

#include "kt/thread_pool.h"

namespace kt {

struct Abandoned {};  // leaves a job in which another worker threw; deliberately no std::exception

// Waits awake, for at most that long; whether it is done.
template <class Done>
bool spin(std::chrono::microseconds awake, Done done) {
  // A pause is 40 to 140 cycles, a yield about 500. Yielding costs the arriving partner nothing,
  // and where the scheduler has put both threads on one CPU it lets the other one run, instead of
  // spinning its time slice (4 ms) away.
  constexpr int kPausesPerYield = 8;
  if (awake.count() == 0) return done();
  const auto deadline = std::chrono::steady_clock::now() + awake;
  do {
    for (int i = 0; i < kPausesPerYield; ++i) {
      if (done()) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    sched_yield();
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

// Waits until value != old: awake for that long, then asleep.
inline void await_change(const std::atomic<uint32_t>& value, uint32_t old,
                         std::chrono::microseconds awake) {
  const auto changed = [&] { return value.load(std::memory_order_acquire) != old; };
  if (spin(awake, changed)) return;
  while (!changed()) value.wait(old, std::memory_order_acquire);
}

struct Worker::Sync {
  // One memory node's part of the work, in proportion to its part of the workers.
  struct Share {
    alignas(64) std::atomic<int64_t> next_chunk{0};
    int first_worker = 0, last_worker = 0;  // half-open, counted node by node; no ids
  };
  // Different cache lines: chunks are drawn while others already wait.
  std::vector<Share> shares;  // by node
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<uint32_t> generation{0};
  std::atomic<bool> failed{false};
  std::chrono::microseconds awake{0};

  void restart_chunks() {
    for (Share& share : shares) share.next_chunk.store(0, std::memory_order_relaxed);
  }

  void begin_job() {  // between jobs only
    restart_chunks();
    arrived.store(0, std::memory_order_relaxed);
    failed.store(false, std::memory_order_relaxed);
  }

  void fail() {
    failed.store(true, std::memory_order_release);
    generation.fetch_add(1, std::memory_order_acq_rel);
    generation.notify_all();
  }
};

}  // namespace kt
