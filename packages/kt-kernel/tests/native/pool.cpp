// SPDX-License-Identifier: Apache-2.0
// What Python cannot see of the thread pool: who ran which chunk, barriers, errors, several memory
// nodes. Built with a sanitizer by tools/run_sanitize.py; makes its own machines, needs no NUMA.
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "check.h"
#include "kt/thread_pool.h"

namespace {

using kt::ThreadPool;
using kt::Topology;
using kt::Worker;

// A machine of num_nodes nodes with one core each, made of the CPUs there are.
Topology machine(int num_nodes) {
  const std::vector<int> cpus = kt::allowed_cpus();
  Topology topology;
  for (int node = 0; node < num_nodes; ++node)
    topology.cores.push_back({node, {cpus[node % cpus.size()]}});
  topology.quota = num_nodes;
  return topology;
}

// Waits for another worker, but not for ever: a broken pool shall fail, not hang.
template <class Done>
bool comes_true(Done done) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!done() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  return done();
}

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void every_chunk_runs_once() {
  for (const int nodes : {1, 2, 3}) {
    for (const int threads : {1, 2, 3, 7}) {
      ThreadPool pool(threads, {}, machine(nodes));
      for (const int rows : {0, 1, 3}) {
        for (const int columns : {0, 1, 5, 64}) {
          for (const int grain : {1, 4, 100}) {
            std::vector<int> visits(rows * columns);  // of plain ints: two visitors are a race
            pool.run([&](Worker& worker) {
              CHECK(worker.num_nodes() == std::min(nodes, threads));
              for (int round = 0; round < 2; ++round) {
                worker.parallel_for(rows, columns, grain, [&](int64_t i, int64_t b, int64_t e) {
                  CHECK(b % grain == 0 && b < e && e - b <= grain && e <= columns);
                  for (; b < e; ++b) ++visits[i * columns + b];
                });
              }
            });
            CHECK(std::count(visits.begin(), visits.end(), 2) == rows * columns);
          }
        }
      }
    }
  }
}

void a_free_worker_takes_what_a_busy_one_cannot() {
  for (const int nodes : {1, 2}) {
    ThreadPool pool(2, {}, machine(nodes));
    constexpr int kChunks = 50;
    std::atomic<int> finished{0};
    pool.run([&](Worker& worker) {
      worker.parallel_for(kChunks, 1, [&](int64_t, int64_t) {
        // Worker 0 stays in its first chunk until the other one has run all the rest.
        if (worker.id() == 0) CHECK(comes_true([&] { return finished == kChunks - 1; }));
        ++finished;
      });
    });
    CHECK(finished == kChunks);
  }
}

// Each worker's first chunk of every loop is its own node's, whoever came first: so what it touched
// first in one loop it finds near in the next.
void a_node_works_on_its_own_share_first() {
  ThreadPool pool(4, {}, machine(2));
  constexpr int kRows = 3, kColumns = 40, kGrain = 4;
  std::atomic<int> foreign{0}, here{0};
  for (int round = 0; round < 20; ++round) {
    here = 0;
    pool.run([&](Worker& worker) {
      CHECK(worker.node() == worker.id() / 2);
      bool first = true;
      worker.parallel_for(kRows, kColumns, kGrain, [&](int64_t, int64_t begin, int64_t) {
        if (!first) return;
        first = false;
        if ((begin < kColumns / 2) != (worker.node() == 0)) ++foreign;
        ++here;  // nobody goes on before all four hold their first chunk
        CHECK(comes_true([&] { return here == 4; }));
      });
    });
  }
  CHECK(foreign == 0);
}

void barriers_order_memory() {
  ThreadPool pool(3);
  std::vector<int> values(3);
  pool.run([&](Worker& worker) {
    for (int round = 0; round < 200; ++round) {
      values[worker.id()] = round;
      worker.barrier();
      for (const int value : values) CHECK(value == round);
      worker.barrier();
    }
  });
}

void errors_reach_whoever_waits() {
  ThreadPool pool(3);
  const auto failing = [](Worker& worker) {
    worker.parallel_for(30, 1, [](int64_t begin, int64_t) {
      if (begin == 7) throw std::runtime_error("seven");
    });
    CHECK(!"a worker passed a barrier behind an error");
  };
  for (int round = 0; round < 50; ++round) {
    const auto captured = std::make_shared<int>(round);
    const uint64_t bad = pool.submit(failing);
    const uint64_t good = pool.submit([captured](Worker& worker) { worker.barrier(); });
    pool.wait(good);
    CHECK(captured.use_count() == 1);  // what a job holds is gone when it is done
    std::string text;
    try {
      pool.wait(bad);
    } catch (const std::runtime_error& error) {
      text = error.what();
    }
    CHECK(text == "seven");
    pool.wait(bad);  // told once
  }
  int thrown = 0;
  try {
    pool.run([](Worker&) { throw 42; });
  } catch (int value) {
    thrown = value;
  }
  CHECK(thrown == 42);
  bool refused = false;
  try {
    pool.run([&pool](Worker&) { pool.run([](Worker&) {}); });
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
}

void pools_and_callers_do_not_meet() {
  ThreadPool shared(2), own(2);
  std::vector<int64_t> sums(1000);
  const auto call = [&](ThreadPool& pool, std::vector<int64_t>& into) {
    for (int i = 0; i < 100; ++i)
      pool.run([&](Worker& worker) {
        worker.parallel_for(1000, 7, [&](int64_t begin, int64_t end) {
          for (; begin < end; ++begin) ++into[begin];
        });
      });
  };
  std::vector<int64_t> alone(1000);
  std::thread a(call, std::ref(shared), std::ref(sums)), b(call, std::ref(shared), std::ref(sums));
  std::thread c(call, std::ref(own), std::ref(alone));
  for (std::thread* thread : {&a, &b, &c}) thread->join();
  CHECK(std::count(sums.begin(), sums.end(), 200) == 1000);
  CHECK(std::count(alone.begin(), alone.end(), 100) == 1000);
}

void the_end_waits_for_the_queue() {
  std::atomic<int> runs{0};
  {
    ThreadPool pool(2);
    for (int i = 0; i < 20; ++i) pool.submit([&](Worker&) { ++runs; });
  }
  CHECK(runs == 40);
}

// One worker is late at every barrier. With a CPU for each, the other one waits awake; where the
// quota has no time for that, it sleeps.
void waiting_awake_depends_on_the_quota() {
  for (const double quota : {2.0, 1.0}) {
    Topology topology = machine(2);
    topology.quota = quota;
    ThreadPool pool(2, {}, topology);
    double waited = 0;
    pool.run([&](Worker& worker) {
      const double before = thread_seconds();
      for (int round = 0; round < 200; ++round) {
        if (worker.id() == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
        worker.barrier();
      }
      if (worker.id() == 1) waited = thread_seconds() - before;
    });
    std::printf("quota %g: %.1f ms of CPU in 200 waits of 0.3 ms\n", quota, 1e3 * waited);
    if (quota < 2) CHECK(waited < 0.03);
  }
}

// Parts that ran on the calling thread, of a job that `start` hands to the pool and waits for.
template <class Start>
int parts_of_the_caller(Start start) {
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> parts{0};
  start([&](Worker& worker) {
    worker.barrier();
    if (std::this_thread::get_id() == caller) ++parts;
  });
  return parts;
}

void who_waits_computes_a_part() {
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    const auto run = [&](kt::Job job) { pool.run(std::move(job)); };
    for (int round = 0; round < 50; ++round) {
      CHECK(parts_of_the_caller(run) == 1);
      CHECK(parts_of_the_caller([&](kt::Job job) { pool.wait(pool.submit(std::move(job))); }) == 0);
    }
    // Behind another job there is only waiting.
    std::atomic<bool> behind{false};
    const uint64_t first =
        pool.submit([&](Worker&) { CHECK(comes_true([&] { return bool(behind); })); });
    std::thread releases([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      behind = true;
    });
    CHECK(parts_of_the_caller(run) == 0);
    releases.join();
    pool.wait(first);
  }
}

void a_pool_keeps_to_its_cores() {
  const std::vector<int> cpus = kt::allowed_cpus();
  if (cpus.size() < 2) return;
  ThreadPool pool(1, {cpus[1]});
  std::thread([&] {
    for (const int cpu : {0, 1}) {
      cpu_set_t here;
      CPU_ZERO(&here);
      CPU_SET(cpus[cpu], &here);
      CHECK(sched_setaffinity(0, sizeof here, &here) == 0);
      CHECK(parts_of_the_caller([&](kt::Job job) { pool.run(std::move(job)); }) == cpu);
    }
  }).join();
}

#if defined(__x86_64__)
constexpr unsigned kFlushSubnormals = 0x8040;  // MXCSR's FTZ and DAZ
void flush_subnormals(bool on) {
  _mm_setcsr((_mm_getcsr() & ~kFlushSubnormals) | (on ? kFlushSubnormals : 0));
}
bool flushes_subnormals() { return (_mm_getcsr() & kFlushSubnormals) != 0; }
#else
void flush_subnormals(bool) {}
bool flushes_subnormals() { return false; }
#endif

void arithmetic_is_that_of_no_thread() {
  std::fesetround(FE_UPWARD);
  flush_subnormals(true);
  {
    ThreadPool pool(2);
    for (int round = 0; round < 20; ++round)
      pool.run([](Worker&) {
        CHECK(std::fegetround() == FE_TONEAREST);
        CHECK(!flushes_subnormals());
      });
    CHECK(std::fegetround() == FE_UPWARD);
  }
  flush_subnormals(false);
  std::fesetround(FE_TONEAREST);
}

}  // namespace

int main() {
  every_chunk_runs_once();
  a_free_worker_takes_what_a_busy_one_cannot();
  a_node_works_on_its_own_share_first();
  barriers_order_memory();
  errors_reach_whoever_waits();
  pools_and_callers_do_not_meet();
  the_end_waits_for_the_queue();
  waiting_awake_depends_on_the_quota();
  who_waits_computes_a_part();
  a_pool_keeps_to_its_cores();
  arithmetic_is_that_of_no_thread();
  std::puts("pool: all good");
}
