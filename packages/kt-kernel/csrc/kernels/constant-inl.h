// SPDX-License-Identifier: Apache-2.0
// Loops whose index is a constant. No arithmetic here. Textual, included inside a target's
// namespace.

// Calls body(std::integral_constant) for 0 <= index < kCount, indices being constants so that
// arrays indexed by them stay in registers.
template <int kCount, class Body>
inline void unrolled(Body&& body) {
  [&]<int... kIndices>(std::integer_sequence<int, kIndices...>) {
    (body(std::integral_constant<int, kIndices>{}), ...);
  }(std::make_integer_sequence<int, kCount>{});
}

// Calls body(std::integral_constant) with `rows` in [1, kMost] as a constant.
template <int kMost, class Body>
inline void with_rows(int rows, Body&& body) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return with_rows<kMost - 1>(rows, body);
  }
  body(std::integral_constant<int, kMost>{});
}
