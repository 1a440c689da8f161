// SPDX-License-Identifier: Apache-2.0
// The one way this library refuses bad input: KT_CHECK throws std::invalid_argument, which Python
// sees as `ValueError: [op] rule; got actual`. Not for internal invariants (use assert) and never
// for control flow.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace kt {

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << '[' << op << "] ";
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

}  // namespace kt

// KT_CHECK("moe.submit", top_k > 0, "top_k must be positive; got ", top_k)
#define KT_CHECK(op, condition, ...)               \
  do {                                             \
    if (!(condition)) ::kt::fail(op, __VA_ARGS__); \
  } while (0)
