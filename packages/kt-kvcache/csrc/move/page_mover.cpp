// SPDX-License-Identifier: Apache-2.0
// The queue of runs and its threads.
#include "page_mover.h"

#include <unistd.h>

#include <utility>

#include "check.h"
#include "move_run.h"

namespace kt::kvcache {

PageMover::PageMover(size_t num_threads, size_t inflight_bytes)
    : num_threads_(num_threads), inflight_limit_(inflight_bytes), owner_(::getpid()) {}

bool PageMover::forked() const { return ::getpid() != owner_; }

void PageMover::submit(std::unique_ptr<Batch> batch) {
  const char* op = batch->is_read ? "mover.read" : "mover.write";
  require(!forked(), op, "the mover must be used by the process that made it", "a forked one");
  const std::vector<Run> runs = runs_of(*batch);
  batch->runs_left = runs.size();
  const std::lock_guard lock(mutex_);
  require(!closed_, op, "the mover must be open", "a closed one");
  while (threads_.size() < num_threads_) threads_.emplace_back([this] { work(); });
  ++num_batches_;
  std::deque<Run>& queue = batch->is_read ? reads_ : writes_;
  queue.insert(queue.end(), runs.begin(), runs.end());
  batch.release();  // owned by its runs; the last one that ends makes it a pointer again
  queued_.notify_all();
}

bool PageMover::take(Run& run) {
  std::unique_lock lock(mutex_);
  for (;;) {
    std::deque<Run>& queue = reads_.empty() ? writes_ : reads_;
    if (!queue.empty()) {
      run = queue.front();
      // A run that has more than the limit travels alone.
      if (inflight_bytes_ == 0 || inflight_bytes_ + run.num_bytes() <= inflight_limit_) {
        queue.pop_front();
        inflight_bytes_ += run.num_bytes();
        return true;
      }
    } else if (closed_) {
      return false;
    }
    queued_.wait(lock);
  }
}

void PageMover::work() {
  Bounce bounce;
  Run run;
  while (take(run)) {
    move_run(run, bounce);
    const size_t num_bytes = run.num_bytes();
    std::unique_ptr<Batch> ended(run.batch->runs_left.fetch_sub(1) == 1 ? run.batch : nullptr);
    const std::lock_guard lock(mutex_);
    inflight_bytes_ -= num_bytes;
    if (!reads_.empty() || !writes_.empty()) queued_.notify_all();
    if (ended != nullptr) {
      done_.push_back(std::move(ended));
      --num_batches_;
      ended_.notify_all();
    }
  }
}

std::vector<std::unique_ptr<Batch>> PageMover::wait() {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [this] { return !done_.empty() || (closed_ && num_batches_ == 0); });
  return std::exchange(done_, {});
}

void PageMover::close() {
  if (forked()) return;
  std::vector<std::thread> threads;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    threads.swap(threads_);
    queued_.notify_all();
    ended_.notify_all();
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace kt::kvcache
