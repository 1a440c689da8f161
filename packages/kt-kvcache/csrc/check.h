// SPDX-License-Identifier: Apache-2.0
// How the core refuses bad input: std::invalid_argument, which Python sees as
// `ValueError: [kvstore.op] rule; got actual`. Not for what only a bug here could break.
#pragma once

#include <stdexcept>
#include <string>

namespace kt::kvcache {

inline void require(bool holds, const char* op, const std::string& rule, const std::string& got) {
  if (!holds)
    throw std::invalid_argument("[kvstore." + std::string(op) + "] " + rule + "; got " + got);
}

}  // namespace kt::kvcache
