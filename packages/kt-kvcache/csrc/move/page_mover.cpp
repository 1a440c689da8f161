// SPDX-License-Identifier: Apache-2.0
// The queue of runs and its threads.
#include "page_mover.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "check.h"

namespace kt::kvcache {
namespace {

// Runs in the ring at once: of small pages, which do not fill the bytes in flight, what keeps a
// drive busy. No drive's queue is longer than a few hundred.
constexpr uint32_t kRingEntries = 64;
// Bytes in the ring at most. A drive has bandwidth x latency of them in work, 7 GB/s x 1 ms; more
// only queue in it, where reads wait behind writes.
constexpr size_t kRingBytes = 16 << 20;

}  // namespace

PageMover::PageMover(size_t num_threads, size_t inflight_bytes, bool with_ring)
    : num_threads_(num_threads),
      inflight_limit_(with_ring ? std::min(inflight_bytes, kRingBytes) : inflight_bytes),
      owner_(::getpid()),
      ring_(with_ring ? std::make_unique<Ring>(kRingEntries) : nullptr) {}

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
  queued_.notify_one();
}

void PageMover::work() {
  Lock lock(mutex_);
  for (;;) {
    const bool fits = next_fits();
    if (fits && !reads_.empty())
      begin(lock);
    else if (!landed_.empty())
      finish(lock);
    else if (fits)
      begin(lock);
    else if (num_flying_ > 0 && !landing_)
      land(lock);
    else if (closed_ && num_batches_ == 0)  // not sooner: the kernel cancels what a dead one began
      return;
    else
      queued_.wait(lock);
  }
}

// Whoever takes something to do wakes one more if something is left, and looks again itself when it
// is done: a page moves without the other threads waking up, which would take time from compute.
void PageMover::wake_another() {
  if (next_fits() || !landed_.empty() || (num_flying_ > 0 && !landing_)) queued_.notify_one();
}

bool PageMover::next_fits() const {
  const std::deque<Run>& queue = reads_.empty() ? writes_ : reads_;
  const size_t num_flights = flights_.size() - spare_.size();
  if (queue.empty() || (ring_ != nullptr && num_flights == kRingEntries)) return false;
  // A run that has more than the limit travels alone.
  return num_flights == 0 || inflight_bytes_ + queue.front().num_bytes() <= inflight_limit_;
}

void PageMover::begin(Lock& lock) {
  std::deque<Run>& queue = reads_.empty() ? writes_ : reads_;
  if (spare_.empty()) spare_.push_back(&flights_.emplace_back());
  Flight& flight = *spare_.back();
  spare_.pop_back();
  const Run whole = flight.run = queue.front();
  queue.pop_front();
  inflight_bytes_ += whole.num_bytes();
  wake_another();
  lock.unlock();
  flight.data = flight.bounce.get(whole.num_bytes());
  if (flight.data == nullptr) {
    fail_run(whole, ENOMEM);
  } else {
    if (!whole.batch->is_read) gather_run(whole, flight.data);
    const Transfer transfer = transfer_of(whole, flight.data);
    if (ring_ != nullptr && ring_->submit(transfer, &flight)) {
      lock.lock();
      ++num_flying_;
      return;
    }
    finish_run(whole, flight.data, run(transfer));
  }
  lock.lock();
  end(flight);
}

void PageMover::land(Lock& lock) {
  landing_ = true;
  wake_another();
  lock.unlock();
  std::vector<Ring::Ended> ended;
  ring_->wait(ended);
  lock.lock();
  landing_ = false;
  num_flying_ -= static_cast<int64_t>(ended.size());
  for (const auto& [tag, result] : ended) {
    auto* flight = static_cast<Flight*>(tag);
    flight->result = result;
    landed_.push_back(flight);
  }
}

void PageMover::finish(Lock& lock) {
  Flight& flight = *landed_.front();
  landed_.pop_front();
  wake_another();
  lock.unlock();
  const Transfer transfer = transfer_of(flight.run, flight.data);
  finish_run(flight.run, flight.data, go_on(transfer, flight.result));
  lock.lock();
  end(flight);
}

void PageMover::end(Flight& flight) {
  Batch* batch = flight.run.batch;
  inflight_bytes_ -= flight.run.num_bytes();
  spare_.push_back(&flight);
  if (--batch->runs_left == 0) {
    done_.emplace_back(batch);
    --num_batches_;
    ended_.notify_all();
  }
  if (closed_ && num_batches_ == 0) queued_.notify_all();
}

std::vector<std::unique_ptr<Batch>> PageMover::wait() {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [this] { return !done_.empty() || (closed_ && num_batches_ == 0); });
  return std::exchange(done_, {});
}

void PageMover::close() {
  if (forked()) return;
  std::vector<std::thread> threads;
  bool was_open;
  {
    const std::lock_guard lock(mutex_);
    was_open = !std::exchange(closed_, true);
    threads.swap(threads_);
    queued_.notify_all();
    ended_.notify_all();
  }
  for (std::thread& thread : threads) thread.join();
  if (was_open) ring_.reset();  // its file is given back now, not when Python forgets the mover
}

}  // namespace kt::kvcache
