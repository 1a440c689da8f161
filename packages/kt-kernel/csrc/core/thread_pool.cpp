// SPDX-License-Identifier: Apache-2.0
// ThreadPool: publishing one job at a time to all workers, the barrier inside a job, and sleeping
// between jobs.
#include "kt/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
#include <utility>

#include "kt/check.h"
#include "topology.h"

namespace kt {
namespace {

using std::chrono::microseconds;
using std::chrono::steady_clock;

// Inside a job the others are at work and arrive within microseconds, while a sleeper takes 50 to
// 200 us to wake on a virtual machine. A waiter that gives up sooner than that makes its partner
// wait, give up and sleep in turn: every barrier of the job then costs a wake-up. Only a worker
// that lost its CPU to another process is awaited in vain.
constexpr microseconds kBarrierAwake{1000};
// Between the jobs of one decode step lie microseconds: waiting awake about as long as a wake-up
// takes saves it. Fruitless waits halve the next one.
constexpr microseconds kMaxAwake{64};
constexpr microseconds kMinAwake{1};
// A pause is 40 to 140 cycles, a yield about 500. Yielding costs the arriving partner nothing, and
// where the scheduler has put both workers on one CPU it lets the other one run, instead of
// spinning its time slice (4 ms) away.
constexpr int kPausesPerYield = 8;
constexpr int kMaxThreads = 4096;  // a typing error, not a machine

struct Abandoned {};  // leaves a job in which another worker threw; deliberately no std::exception

thread_local const void* t_pool = nullptr;  // the pool whose job runs on this thread

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until value != old: awake for that long, then asleep. True if it changed while awake.
bool await_change(const std::atomic<uint32_t>& value, uint32_t old, microseconds awake) {
  if (awake.count() > 0) {
    const auto deadline = steady_clock::now() + awake;
    do {
      for (int i = 0; i < kPausesPerYield; ++i) {
        if (value.load(std::memory_order_acquire) != old) return true;
        pause();
      }
      sched_yield();
    } while (steady_clock::now() < deadline);
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
  return false;
}

}  // namespace

struct Worker::Sync {
  // Different cache lines: chunks are drawn while others already wait.
  alignas(64) std::atomic<int64_t> next_chunk{0};
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<uint32_t> generation{0};
  std::atomic<bool> failed{false};
  microseconds awake{0};

  void fail() {
    failed.store(true, std::memory_order_release);
    generation.fetch_add(1, std::memory_order_acq_rel);
    generation.notify_all();
  }
};

void Worker::barrier() {
  Sync& s = *sync_;
  const uint32_t generation = s.generation.load(std::memory_order_acquire);
  if (s.failed.load(std::memory_order_acquire)) throw Abandoned{};
  if (s.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == num_workers_) {
    s.arrived.store(0, std::memory_order_relaxed);
    s.next_chunk.store(0, std::memory_order_relaxed);
    s.generation.fetch_add(1, std::memory_order_acq_rel);
    s.generation.notify_all();
  } else {
    await_change(s.generation, generation, s.awake);
  }
  if (s.failed.load(std::memory_order_acquire)) throw Abandoned{};
}

bool Worker::next_chunk(int64_t count, int64_t grain, int64_t* begin, int64_t* end) {
  *begin = sync_->next_chunk.fetch_add(grain, std::memory_order_relaxed);
  *end = std::min(*begin + grain, count);
  return *begin < count;
}

struct ThreadPool::State {
  struct Running {
    Running(uint64_t ticket, Job job) : ticket(ticket), job(std::move(job)) {}
    uint64_t ticket;
    Job job;
    Worker::Sync sync;
    std::exception_ptr error;  // guarded by mutex
    int unfinished = 0;        // guarded by mutex
  };

  const pid_t owner = getpid();
  int num_threads = 1;
  bool spare_core = false;  // one more than the workers need: for the submitting thread
  microseconds barrier_awake{0};
  std::vector<std::thread> threads;

  mutable std::mutex mutex;
  std::condition_variable finished;
  std::deque<std::pair<uint64_t, Job>> queue;
  std::optional<Running> running;
  std::map<uint64_t, std::exception_ptr> errors;  // of tickets not waited for yet
  uint64_t submitted = 0;
  bool stopping = false;
  std::map<std::string, std::atomic<uint64_t>> op_counts;  // nodes stay where they are
  std::shared_ptr<const AlignedBuffer> scratch;

  std::atomic<uint64_t> completed{0};
  std::atomic<uint32_t> published{0};  // counts jobs given to the workers, and the stop

  void check_process(const char* op) const {
    if (getpid() != owner)
      throw std::runtime_error("[" + std::string(op) +
                               "] a pool's threads do not survive fork(); "
                               "make a new ThreadPool in the child process");
  }

  void publish() {  // with the mutex held
    if (running || queue.empty()) return;
    running.emplace(queue.front().first, std::move(queue.front().second));
    queue.pop_front();
    running->sync.awake = barrier_awake;
    running->unfinished = num_threads;
    published.fetch_add(1, std::memory_order_release);
    published.notify_all();
  }

  void run_part(int id) {
    Running& job = *running;  // stays until every worker is done with it
    Worker worker(job.sync, id, num_threads);
    std::exception_ptr error;
    try {
      job.job(worker);
    } catch (const Abandoned&) {
    } catch (...) {
      error = std::current_exception();
      job.sync.fail();
    }
    std::unique_lock lock(mutex);
    if (error && !job.error) job.error = error;
    error = nullptr;
    if (--job.unfinished > 0) return;
    lock.unlock();
    job.job = nullptr;  // captures die before the ticket is done, outside the lock
    lock.lock();
    if (job.error) errors[job.ticket] = std::move(job.error);
    completed.store(job.ticket, std::memory_order_release);
    running.reset();
    publish();
    finished.notify_all();
  }

  void work(int id) {
    t_pool = this;
    microseconds awake = kMinAwake;
    for (uint32_t seen = 0;; ++seen) {
      const bool in_time = await_change(published, seen, spare_core ? awake : microseconds{0});
      awake = in_time ? std::min(awake * 2, kMaxAwake) : std::max(awake / 2, kMinAwake);
      {
        const std::lock_guard lock(mutex);
        if (stopping) return;
      }
      run_part(id);
    }
  }

  void stop() {
    {
      std::unique_lock lock(mutex);
      finished.wait(lock, [this] { return completed.load() == submitted; });
      stopping = true;
      published.fetch_add(1, std::memory_order_release);
      published.notify_all();
    }
    for (std::thread& thread : threads) thread.join();
  }

  void pin(int id, int cpu) {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    CPU_SET(cpu, &mask);
    const int error = pthread_setaffinity_np(threads[id].native_handle(), sizeof mask, &mask);
    KT_CHECK("thread_pool", error == 0, "cores must be usable CPU ids; pinning to ", cpu,
             " failed with error ", error);
  }
};

ThreadPool::ThreadPool(int num_threads, std::vector<int> cores) : state_(new State) {
  const char* op = "thread_pool";
  KT_CHECK(op, num_threads >= 0 && num_threads <= kMaxThreads, "num_threads must lie in [0, ",
           kMaxThreads, "]; got ", num_threads);
  const std::vector<int> allowed = allowed_cpus();
  for (const int core : cores)
    KT_CHECK(op, core < CPU_SETSIZE && std::binary_search(allowed.begin(), allowed.end(), core),
             "cores must be CPU ids this process may use; got ", core);
  std::vector<int> distinct = cores;
  std::sort(distinct.begin(), distinct.end());
  const auto repeated = std::adjacent_find(distinct.begin(), distinct.end());
  KT_CHECK(op, repeated == distinct.end(), "cores must name each CPU once; got ", *repeated,
           " twice");
  if (num_threads == 0)
    num_threads = cores.empty() ? usable_cores() : static_cast<int>(cores.size());
  KT_CHECK(op, cores.empty() || cores.size() >= static_cast<size_t>(num_threads),
           "cores must name a CPU for each of the ", num_threads, " threads; got ", cores.size());

  State& state = *state_;
  state.num_threads = num_threads;
  const int cpus = static_cast<int>(cores.empty() ? allowed.size() : cores.size());
  state.spare_core = static_cast<int>(allowed.size()) > num_threads;
  if (cpus >= num_threads) state.barrier_awake = kBarrierAwake;
  try {
    for (int id = 0; id < num_threads; ++id) {
      state.threads.emplace_back([&state, id] { state.work(id); });
      if (!cores.empty()) state.pin(id, cores[id]);
    }
  } catch (...) {
    state.stop();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (getpid() != state_->owner) {
    static_cast<void>(
        state_.release());  // the threads, and perhaps a locked mutex, are the parent's
    return;
  }
  state_->stop();
}

int ThreadPool::num_threads() const { return state_->num_threads; }

uint64_t ThreadPool::submit(Job job) {
  state_->check_process("thread_pool.submit");
  const std::lock_guard lock(state_->mutex);
  state_->queue.emplace_back(++state_->submitted, std::move(job));
  state_->publish();
  return state_->submitted;
}

bool ThreadPool::done(uint64_t ticket) const {
  return state_->completed.load(std::memory_order_acquire) >= ticket;
}

void ThreadPool::wait(uint64_t ticket) {
  const char* op = "thread_pool.wait";
  State& state = *state_;
  state.check_process(op);
  KT_CHECK(op, t_pool != &state, "a job must not wait for its own pool; got ticket ", ticket);
  if (state.spare_core) {
    const auto deadline = steady_clock::now() + kMaxAwake;
    while (!done(ticket) && steady_clock::now() < deadline) pause();
  }
  std::unique_lock lock(state.mutex);
  KT_CHECK(op, ticket <= state.submitted, "ticket must have been submitted; got ", ticket);
  state.finished.wait(lock, [&] { return done(ticket); });
  const auto found = state.errors.find(ticket);
  if (found == state.errors.end()) return;
  const std::exception_ptr error = std::move(found->second);
  state.errors.erase(found);
  lock.unlock();
  std::rethrow_exception(error);
}

std::shared_ptr<const AlignedBuffer> ThreadPool::scratch(size_t bytes) {
  state_->check_process("thread_pool.scratch");
  const std::lock_guard lock(state_->mutex);
  if (!state_->scratch || state_->scratch->size() < bytes)
    state_->scratch = std::make_shared<const AlignedBuffer>(bytes);
  return state_->scratch;
}

std::atomic<uint64_t>& ThreadPool::counter(const char* op) {
  state_->check_process(op);
  const std::lock_guard lock(state_->mutex);
  return state_->op_counts[op];
}

std::map<std::string, uint64_t> ThreadPool::op_counts() const {
  state_->check_process("thread_pool.op_counts");
  const std::lock_guard lock(state_->mutex);
  std::map<std::string, uint64_t> counts;
  for (const auto& [op, count] : state_->op_counts)
    if (count > 0) counts.emplace(op, count);  // built is not run
  return counts;
}

}  // namespace kt
