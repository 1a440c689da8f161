// SPDX-License-Identifier: Apache-2.0
// What the bind_*.cpp files share: who registers what, and MoE as Python holds it. Every binding
// validates, releases the GIL and makes one C++ call.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "arrays.h"
#include "gil.h"
#include "kt/moe.h"
#include "kt/thread_pool.h"

namespace kt::python {

void bind_dispatch(nb::module_& m);     // targets, formats, op names
void bind_thread_pool(nb::module_& m);  // ThreadPool
void bind_weights(nb::module_& m);      // Linear, Experts
void bind_moe(nb::module_& m);          // MoE, Ticket
void bind_route(nb::module_& m);        // Router
void bind_stream(nb::module_& m);       // Stream, Graph
void bind_probe(nb::module_& m);        // read and peak probes

// How many values such a row of a checkpoint's bytes stands for; throws `[op] …` if it is none.
int source_columns(const char* op, const FormatInfo& facts, int row_bytes);

// kind as Activation of kt_kernel/activation.py names it.
Activation activation_from(const char* op, const std::string& kind, float limit, float alpha);

// The arrays of one MoE call, checked against it.
class MoeArrays {
 public:
  MoeArrays(const char* op, const Moe& moe, nb::handle hidden, const std::string& hidden_dtype,
            nb::handle topk_ids, nb::handle topk_weights, nb::handle out,
            const std::string& out_dtype, bool accumulate);
  const MoeCall& call() const { return call_; }
  std::vector<nb::ndarray<nb::ro>> references() const;

 private:
  DType dtype_, out_dtype_;
  Array hidden_, topk_ids_, topk_weights_, out_;
  MoeCall call_;
};

// The arrays of one route op, checked against each other and its Router.
class RouteArrays {
 public:
  RouteArrays(nb::handle logits, nb::handle topk_ids, nb::handle topk_weights, const Router& router,
              nb::handle bias, nb::handle input_ids, nb::handle hash_table);
  const RouteArgs& args() const { return args_; }
  int64_t rows() const { return logits_.dim(0); }
  std::vector<nb::ndarray<nb::ro>> references() const;

 private:
  Array logits_, topk_ids_, topk_weights_;
  std::optional<Array> bias_, input_ids_, hash_table_;
  RouteArgs args_;
};

// One queued call, shared by its Ticket and its MoE. Thread-safe; needs no GIL.
class Flight {
 public:
  Flight(ThreadPool& pool, uint64_t ticket) : pool_(pool), ticket_(ticket) {}
  bool done() const { return finished_ || pool_.done(ticket_); }
  void finish();         // blocks until the call has run; throws only in a forked child
  void rethrow() const;  // its error, if it had one; after finish()

 private:
  ThreadPool& pool_;
  uint64_t ticket_;
  std::once_flag once_;
  std::atomic<bool> finished_{false};
  std::exception_ptr error_;
};

// Moe, what it runs on, and its calls in flight.
class MoeHandle {
 public:
  MoeHandle(std::shared_ptr<Experts> experts, Activation activation, int top_k, int max_tokens,
            std::shared_ptr<ThreadPool> pool);
  Moe& moe() { return moe_; }
  ThreadPool& pool() { return *pool_; }
  // At most two calls are in flight: one runs while the next one waits. A third blocks here. Needs
  // no GIL.
  std::shared_ptr<Flight> submit(const MoeCall& call);

 private:
  std::shared_ptr<ThreadPool> pool_;
  Moe moe_;
  std::mutex mutex_;
  std::deque<std::shared_ptr<Flight>> in_flight_;
};

}  // namespace kt::python
