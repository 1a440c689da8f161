// SPDX-License-Identifier: Apache-2.0
// Walking a row by vectors: the ragged end without a second loop in every kernel. No arithmetic
// here. Textual, included inside a target's namespace.

struct WholeVector {
  constexpr operator int() const { return Vec::kLanes; }
};

// Calls body(i, lanes) for the vectors covering [0, n). lanes is a WholeVector for all but a ragged
// last one, which gets an int: the body is compiled for both, so that whole vectors need no mask.
template <class Body>
inline void for_each_vector(int n, Body&& body) {
  int i = 0;
  for (; i + Vec::kLanes <= n; i += Vec::kLanes) body(i, WholeVector{});
  if (i < n) body(i, n - i);
}

template <class E, class Lanes>
inline Vec::F load_lanes(const typename E::T* p, Lanes lanes) {
  if (lanes == Vec::kLanes) return E::load(p);
  return E::load_n(p, lanes);
}

template <class E, class Lanes>
inline void store_lanes(typename E::T* p, Vec::F x, Lanes lanes) {
  if (lanes == Vec::kLanes)
    E::store(p, x);
  else
    E::store_n(p, x, lanes);
}

inline void fill_nan(float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = std::numeric_limits<float>::quiet_NaN();
}
