// SPDX-License-Identifier: Apache-2.0
// Bindings of MoE and Ticket: who owns the arrays of a queued call, and for how long. The op itself
// is csrc/core/moe.cpp.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "kt/check.h"
#include "kt/ops.h"

namespace kt::python {

using namespace nb::literals;

MoeArrays::MoeArrays(const char* op, const Moe& moe, nb::handle hidden,
                     const std::string& hidden_dtype, nb::handle topk_ids, nb::handle topk_weights,
                     nb::handle out, const std::string& out_dtype, bool accumulate)
    : dtype_(dtype_from_name(op, "hidden_dtype", hidden_dtype)),
      out_dtype_(dtype_from_name(op, "out_dtype", out_dtype)),
      hidden_(op, "hidden", hidden, element_of(dtype_),
              {"num_tokens", moe.experts().hidden_size()}),
      topk_ids_(op, "topk_ids", topk_ids, Element::int32, {hidden_.dim(0), moe.top_k()}),
      topk_weights_(op, "topk_weights", topk_weights, Element::float32,
                    {hidden_.dim(0), moe.top_k()}),
      out_(op, "out", out, element_of(out_dtype_), {hidden_.dim(0), moe.experts().hidden_size()},
           Access::write),
      call_{hidden_.read(),
            dtype_,
            topk_ids_.read<int32_t>(),
            topk_weights_.read<float>(),
            out_.write(),
            out_dtype_,
            hidden_.dim(0),
            accumulate} {
  KT_CHECK(op, call_.rows <= moe.max_tokens(), "num_tokens must not exceed max_tokens ",
           moe.max_tokens(), "; got ", call_.rows);
  check_disjoint(op, out_, {&hidden_, &topk_ids_, &topk_weights_});
}

std::vector<nb::ndarray<nb::ro>> MoeArrays::references() const {
  return {hidden_.reference(), topk_ids_.reference(), topk_weights_.reference(), out_.reference()};
}

void Flight::finish() {
  if (finished_) return;
  pool_.require_owner("moe.wait");  // or once_ taken
  std::call_once(once_, [this] {
    try {
      pool_.wait(ticket_);
    } catch (...) {
      error_ = std::current_exception();
    }
    finished_ = true;
  });
}

void Flight::rethrow() const {
  if (error_) std::rethrow_exception(error_);
}

MoeHandle::MoeHandle(std::shared_ptr<Experts> experts, Activation activation, int top_k,
                     int max_tokens, std::shared_ptr<ThreadPool> pool)
    : pool_(std::move(pool)), moe_(std::move(experts), activation, top_k, max_tokens, *pool_) {}

std::shared_ptr<Flight> MoeHandle::submit(const MoeCall& call) {
  pool_->require_owner("moe.submit");  // a fork may have left mutex_ locked in the child
  const std::lock_guard lock(mutex_);
  while (in_flight_.size() >= 2) {
    in_flight_.front()->finish();
    in_flight_.pop_front();
  }
  const uint64_t ticket = pool_->submit(moe_op(moe_, call, nullptr).run);
  return in_flight_.emplace_back(std::make_shared<Flight>(*pool_, ticket));
}

namespace {

// Python's side of a Flight: keeps the call's arrays and its MoE (hence pool and weights) until the
// call has run.
class Ticket {
 public:
  Ticket(std::shared_ptr<Flight> flight, std::shared_ptr<MoeHandle> moe,
         std::vector<nb::ndarray<nb::ro>> arrays)
      : flight_(std::move(flight)), moe_(std::move(moe)), arrays_(std::move(arrays)) {}
  Ticket(Ticket&&) = default;
  ~Ticket() {
    if (!flight_ || !moe_) return;  // moved from, or waited for
    const ReleasedGil released;
    try {
      flight_->finish();
    } catch (const std::runtime_error&) {  // forked: nothing to wait for
    }
  }

  bool done() const { return flight_->done(); }
  void wait() {
    {
      const ReleasedGil released;
      flight_->finish();
    }
    arrays_.clear();
    moe_.reset();
    flight_->rethrow();
  }

 private:
  std::shared_ptr<Flight> flight_;
  std::shared_ptr<MoeHandle> moe_;
  std::vector<nb::ndarray<nb::ro>> arrays_;
};

void forward(MoeHandle& self, nb::handle hidden, const std::string& hidden_dtype,
             nb::handle topk_ids, nb::handle topk_weights, nb::handle out,
             const std::string& out_dtype, bool accumulate) {
  const MoeArrays arrays("moe.forward", self.moe(), hidden, hidden_dtype, topk_ids, topk_weights,
                         out, out_dtype, accumulate);
  const ReleasedGil released;
  self.pool().run(moe_op(self.moe(), arrays.call(), nullptr).run);
}

Ticket submit(std::shared_ptr<MoeHandle> self, nb::handle hidden, const std::string& hidden_dtype,
              nb::handle topk_ids, nb::handle topk_weights, nb::handle out,
              const std::string& out_dtype, bool accumulate) {
  const MoeArrays arrays("moe.submit", self->moe(), hidden, hidden_dtype, topk_ids, topk_weights,
                         out, out_dtype, accumulate);
  std::shared_ptr<Flight> flight;
  {
    const ReleasedGil released;
    flight = self->submit(arrays.call());
  }
  return Ticket(std::move(flight), std::move(self), arrays.references());
}

void set_resident(MoeHandle& self, nb::handle mask) {
  const int num_experts = self.moe().experts().num_experts();
  const Array array("moe.set_resident", "mask", mask, Element::uint8, {num_experts});
  std::vector<uint8_t> bytes(array.read<uint8_t>(), array.read<uint8_t>() + num_experts);
  const ReleasedGil released;
  self.moe().set_resident(std::move(bytes));
}

}  // namespace

void bind_moe(nb::module_& m) {
  nb::class_<Ticket>(m, "Ticket")
      .def("wait", &Ticket::wait, "Block until the call has run; raises its error.")
      .def("done", &Ticket::done);

  nb::class_<MoeHandle>(m, "MoE")
      .def(
          "__init__",
          [](MoeHandle* self, std::shared_ptr<Experts> experts, const std::string& kind,
             float limit, float alpha, int top_k, int max_tokens,
             std::shared_ptr<ThreadPool> pool) {
            new (self) MoeHandle(std::move(experts), activation_from("moe", kind, limit, alpha),
                                 top_k, max_tokens, std::move(pool));
          },
          "experts"_a, "activation"_a, "limit"_a, "alpha"_a, "top_k"_a, "max_tokens"_a, "pool"_a)
      .def("forward", &forward, "hidden"_a.none(), "hidden_dtype"_a, "topk_ids"_a.none(),
           "topk_weights"_a.none(), "out"_a.none(), "out_dtype"_a, "accumulate"_a)
      .def("submit", &submit, "hidden"_a.none(), "hidden_dtype"_a, "topk_ids"_a.none(),
           "topk_weights"_a.none(), "out"_a.none(), "out_dtype"_a, "accumulate"_a,
           "Queue the call. Blocks while two calls of this MoE are in flight.")
      .def("set_resident", &set_resident, "mask"_a.none(),
           "Skip the experts whose byte of mask (num_experts,) is not 0, from the next call on.")
      .def_prop_ro("top_k", [](MoeHandle& self) { return self.moe().top_k(); })
      .def_prop_ro("max_tokens", [](MoeHandle& self) { return self.moe().max_tokens(); });
}

}  // namespace kt::python
