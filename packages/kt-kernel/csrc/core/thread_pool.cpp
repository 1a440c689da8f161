// SPDX-License-Identifier: Apache-2.0
// ThreadPool: publishing one job at a time to all workers, and sleeping between jobs. Inside a job:
// worker.cpp; where workers live: placement.cpp.
#include "kt/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "kt/check.h"
#include "placement.h"
#include "worker.h"

namespace kt {
namespace {

using std::chrono::microseconds;
using Clock = std::chrono::steady_clock;

// Inside a job the others are at work and arrive within microseconds, while a sleeper takes 50 to
// 200 us to wake on a virtual machine. A waiter that gives up sooner than that makes its partner
// wait, give up and sleep in turn: every barrier of the job then costs a wake-up. Only a worker
// that lost its CPU to another process is awaited in vain.
constexpr microseconds kBarrierAwake{1000};
// Between two jobs of one decode step lies what Python does there: 30 us, 70 after a job that
// filled the caches with its own data (ADR 0001), more if the caller computes something. Waiting
// awake about as long as a wake-up takes saves it. A wait that was short, awake or asleep, makes
// the next one awake; each long one halves that.
constexpr microseconds kMaxAwake{256};
constexpr int kMaxThreads = 4096;  // a typing error, not a machine

constexpr int kNobody = -1;  // no worker's id

thread_local const void* t_pool = nullptr;  // the pool whose job runs on this thread

// Rounding to nearest, with subnormal numbers, for the life of this object: results must not depend
// on what a thread has set for itself (torch.set_flush_denormal, a library built with -ffast-math).
class PlainArithmetic {
 public:
  PlainArithmetic() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~PlainArithmetic() { std::fesetenv(&saved_); }
  PlainArithmetic(const PlainArithmetic&) = delete;
  PlainArithmetic& operator=(const PlainArithmetic&) = delete;

 private:
  std::fenv_t saved_;
};

}  // namespace

struct ThreadPool::State {
  struct Running {
    uint64_t ticket = 0;  // 0: none runs
    Clock::time_point published;
    Job job;
    int absent = kNobody;      // the worker whose part the thread that waits for the job computes
    std::exception_ptr error;  // guarded by mutex
    int unfinished = 0;        // guarded by mutex
  };

  struct alignas(64) Bell {
    std::atomic<uint32_t> rung{0};  // for every job to take part in, and the stop
  };

  const pid_t owner = getpid();
  int num_threads = 1;
  bool own_cores = false;   // one for each worker
  bool spare_core = false;  // and one more, for the submitting thread
  std::vector<Home> homes;
  std::vector<std::thread> threads;
  Worker::Sync sync;  // of the running job

  mutable std::mutex mutex;
  std::condition_variable finished;
  std::deque<std::pair<uint64_t, Job>> queue;
  Running running;
  std::map<uint64_t, std::exception_ptr> errors;  // of tickets not waited for yet
  uint64_t submitted = 0;
  std::map<std::string, std::atomic<uint64_t>> op_counts;  // nodes stay where they are
  std::shared_ptr<const AlignedBuffer> scratch;

  std::atomic<uint64_t> completed{0};
  std::vector<Bell> bells;  // by worker
  std::atomic<bool> stopping{false};

  uint64_t enqueue(Job job) {  // with the mutex held
    queue.emplace_back(++submitted, std::move(job));
    return submitted;
  }

  void publish(int absent = kNobody) {  // with the mutex held
    if (running.ticket != 0 || queue.empty()) return;
    running = {queue.front().first, Clock::now(), std::move(queue.front().second), absent, nullptr,
               num_threads};
    queue.pop_front();
    sync.begin_job();
    ring(absent);
  }

  // Wakes all workers but one. Each has its own bell: waking the absent one would push the thread
  // that computes in its place off their CPU.
  void ring(int absent) {
    for (int id = 0; id < num_threads; ++id) {
      if (id == absent) continue;
      bells[id].rung.fetch_add(1, std::memory_order_release);
      bells[id].rung.notify_one();
    }
  }

  // The worker that lives where this thread is now: in its place this thread disturbs no other.
  // Nobody if the pool was told to keep off this CPU.
  int worker_here() const {
    const int cpu = sched_getcpu();
    for (int id = 0; id < num_threads; ++id) {
      const std::vector<int>& cpus = homes[id].cpus;
      if (cpus.empty() || std::binary_search(cpus.begin(), cpus.end(), cpu)) return id;
    }
    return kNobody;
  }

  void run_part(int id) {
    const PlainArithmetic plain;
    const void* const outer = std::exchange(t_pool, this);
    Worker worker(sync, id, num_threads, homes[id].node);
    std::exception_ptr error;
    try {
      running.job(worker);  // stays until every worker is done with it
    } catch (const Abandoned&) {
    } catch (...) {
      error = std::current_exception();
      sync.fail();
    }
    t_pool = outer;
    std::unique_lock lock(mutex);
    if (error && !running.error) running.error = error;
    error = nullptr;
    if (--running.unfinished > 0) return;
    lock.unlock();
    running.job = nullptr;  // captures die before the ticket is done, outside the lock
    lock.lock();
    if (running.error) errors[running.ticket] = std::move(running.error);
    completed.store(running.ticket, std::memory_order_release);
    running.ticket = 0;
    publish();
    finished.notify_all();
  }

  void work(int id) {
    microseconds awake{0};
    bool room = spare_core;
    for (uint32_t seen = 0;; ++seen) {
      const Clock::time_point start = Clock::now();
      await_change(bells[id].rung, seen, room ? awake : microseconds{0});
      if (stopping.load(std::memory_order_relaxed)) return;  // told before the bell rang
      awake = running.published - start < kMaxAwake ? kMaxAwake : awake / 2;
      // Whoever computes an absent worker's part goes on in its place.
      room = spare_core || (own_cores && running.absent != kNobody);
      run_part(id);
    }
  }

  void stop() {
    {
      std::unique_lock lock(mutex);
      finished.wait(lock, [this] { return completed.load() == submitted; });
      stopping.store(true, std::memory_order_relaxed);
      ring(kNobody);
    }
    for (std::thread& thread : threads) thread.join();
  }

  void place(std::vector<Home> placed) {
    homes = std::move(placed);
    std::vector<int> workers;  // by node
    for (const Home& home : homes) {
      workers.resize(std::max<size_t>(workers.size(), home.node + 1));
      ++workers[home.node];
    }
    sync.shares = std::vector<Worker::Sync::Share>(workers.size());
    for (size_t node = 0, first = 0; node < workers.size(); ++node) {
      sync.shares[node].first_worker = static_cast<int>(first);
      first += workers[node];
      sync.shares[node].last_worker = static_cast<int>(first);
    }
  }

  void start(int id) {
    std::thread& thread = threads.emplace_back([this, id] { work(id); });
    // The kernel keeps 15 characters. Only for people who look: no harm if it fails.
    pthread_setname_np(thread.native_handle(), ("kt-worker-" + std::to_string(id)).c_str());
    if (!homes[id].cpus.empty()) restrict_to(thread, homes[id].cpus);
  }
};

ThreadPool::ThreadPool(int num_threads, const std::vector<int>& cores, const Topology& topology)
    : state_(new State) {
  const char* op = "thread_pool";
  KT_CHECK(op, num_threads >= 0 && num_threads <= kMaxThreads, "num_threads must lie in [0, ",
           kMaxThreads, "]; got ", num_threads);
  const std::vector<int> allowed = allowed_cpus();
  for (const int core : cores)
    KT_CHECK(op, std::binary_search(allowed.begin(), allowed.end(), core),
             "cores must be CPU ids this process may use; got ", core);
  std::vector<int> distinct = cores;
  std::sort(distinct.begin(), distinct.end());
  const auto repeated = std::adjacent_find(distinct.begin(), distinct.end());
  KT_CHECK(op, repeated == distinct.end(), "cores must name each CPU once; got ", *repeated,
           " twice");
  if (num_threads == 0)
    num_threads = cores.empty() ? topology.usable_cores() : static_cast<int>(cores.size());
  KT_CHECK(op, cores.empty() || cores.size() >= static_cast<size_t>(num_threads),
           "cores must name a CPU for each of the ", num_threads, " threads; got ", cores.size());

  State& state = *state_;
  state.num_threads = num_threads;
  state.place(place_workers(num_threads, cores, topology));
  // Who waits awake spends the quota that others need.
  state.own_cores = topology.quota >= num_threads;
  state.spare_core = topology.quota >= num_threads + 1;
  if (state.own_cores) state.sync.awake = kBarrierAwake;
  state.bells = std::vector<State::Bell>(num_threads);
  try {
    for (int id = 0; id < num_threads; ++id) state.start(id);
  } catch (...) {
    state.stop();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (getpid() != state_->owner) {
    static_cast<void>(state_.release());  // its threads, perhaps a locked mutex: the parent's
    return;
  }
  state_->stop();
}

int ThreadPool::num_threads() const { return state_->num_threads; }

void ThreadPool::require_owner(const char* op) const {
  if (getpid() != state_->owner)
    throw std::runtime_error("[" + std::string(op) +
                             "] a pool's threads do not survive fork(); "
                             "make a new ThreadPool in the child process");
}

uint64_t ThreadPool::submit(Job job) {
  require_owner("thread_pool.submit");
  const std::lock_guard lock(state_->mutex);
  const uint64_t ticket = state_->enqueue(std::move(job));
  state_->publish();
  return ticket;
}

void ThreadPool::run(Job job) {
  const char* op = "thread_pool.run";
  State& state = *state_;
  require_owner(op);
  KT_CHECK(op, t_pool != &state, "a job must not run another in its own pool");
  uint64_t ticket;
  int id;
  {
    const std::lock_guard lock(state.mutex);
    id = state.running.ticket == 0 ? state.worker_here() : kNobody;
    ticket = state.enqueue(std::move(job));
    state.publish(id);
  }
  if (id != kNobody) {
    state.run_part(id);
    spin(kMaxAwake, [&] { return done(ticket); });  // the others leave the same last barrier
  }
  wait(ticket);
}

bool ThreadPool::done(uint64_t ticket) const {
  require_owner("thread_pool.done");
  return state_->completed.load(std::memory_order_acquire) >= ticket;
}

void ThreadPool::wait(uint64_t ticket) {
  const char* op = "thread_pool.wait";
  State& state = *state_;
  require_owner(op);
  KT_CHECK(op, t_pool != &state, "a job must not wait for its own pool; got ticket ", ticket);
  const auto done = [&] { return state.completed.load(std::memory_order_acquire) >= ticket; };
  if (state.spare_core) spin(kMaxAwake, done);
  std::unique_lock lock(state.mutex);
  KT_CHECK(op, ticket <= state.submitted, "ticket must have been submitted; got ", ticket);
  state.finished.wait(lock, done);
  const auto found = state.errors.find(ticket);
  if (found == state.errors.end()) return;
  const std::exception_ptr error = std::move(found->second);
  state.errors.erase(found);
  lock.unlock();
  std::rethrow_exception(error);
}

std::shared_ptr<const AlignedBuffer> ThreadPool::scratch(size_t bytes) {
  require_owner("thread_pool.scratch");
  const std::lock_guard lock(state_->mutex);
  if (!state_->scratch || state_->scratch->size() < bytes)
    state_->scratch = std::make_shared<const AlignedBuffer>(bytes);
  return state_->scratch;
}

std::atomic<uint64_t>& ThreadPool::counter(const char* op) {
  require_owner(op);
  const std::lock_guard lock(state_->mutex);
  return state_->op_counts[op];
}

std::map<std::string, uint64_t> ThreadPool::op_counts() const {
  require_owner("thread_pool.op_counts");
  const std::lock_guard lock(state_->mutex);
  std::map<std::string, uint64_t> counts;
  for (const auto& [op, count] : state_->op_counts)
    if (count > 0) counts.emplace(op, count);  // built is not run
  return counts;
}

}  // namespace kt
