// SPDX-License-Identifier: Apache-2.0
// Stream and Graph: when ops run. What an op does is in ops.cpp; how workers meet is in
// thread_pool.cpp.
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "kt/check.h"
#include "kt/stream.h"

namespace kt {
namespace {

// "[attention] rule; got x" -> "rule; got x": the graph names the op itself.
std::string without_op(const std::string& text) {
  const size_t end = text.rfind('[', 0) == 0 ? text.find("] ") : std::string::npos;
  return end == std::string::npos ? text : text.substr(end + 2);
}

std::string locate(size_t index, const Op& op, const std::exception& error) {
  return "[graph.replay] op " + std::to_string(index) + " " + op.name + ": " +
         without_op(error.what());
}

}  // namespace

void Stream::submit(Op op) { pool_->run(std::move(op.run)); }

// In a forked child busy_ may be locked for ever: the pool is asked first.
void Graph::submit(Op op) {
  pool_->require_owner(op.name.c_str());
  const std::unique_lock busy(busy_, std::try_to_lock);
  KT_CHECK(op.name.c_str(), busy.owns_lock(),
           "a graph records before or after a replay; got one "
           "that is replaying");
  ops_.push_back(std::move(op));
}

void Graph::replay() {
  pool_->require_owner("graph.replay");
  const std::unique_lock busy(busy_, std::try_to_lock);
  KT_CHECK("graph.replay", busy.owns_lock(),
           "one replay of a graph runs at a time; got a second one");
  pool_->run([this](Worker& worker) {
    for (size_t i = 0; i < ops_.size(); ++i) {
      // Only real errors are caught: the signal that another worker failed passes through to the
      // pool.
      try {
        ops_[i].run(worker);
      } catch (const std::invalid_argument& error) {
        throw std::invalid_argument(locate(i, ops_[i], error));
      } catch (const std::exception& error) {
        throw std::runtime_error(locate(i, ops_[i], error));
      }
    }
  });
}

}  // namespace kt
