// SPDX-License-Identifier: Apache-2.0
// Whole numbers rounded up. Arguments are positive, or 0 on the left.
#pragma once

#include <type_traits>

namespace kt {

template <class T>
constexpr T ceil_div(T a, std::type_identity_t<T> b) {
  return (a + b - 1) / b;
}

template <class T>
constexpr T round_up(T value, std::type_identity_t<T> multiple) {
  return ceil_div(value, multiple) * multiple;
}

}  // namespace kt
