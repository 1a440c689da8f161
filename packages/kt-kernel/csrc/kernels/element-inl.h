// SPDX-License-Identifier: Apache-2.0
// Memory elements (f32, bf16, f16) as vectors of float, whole or partial, and exp, built from `Vec`
// alone. No kernels here. Textual, included inside a target's namespace.

// Element<DType> loads and stores 8 elements (or the first n; other lanes load as 0) as 8 floats.
template <DType kType>
struct Element {
  using T = uint16_t;
  static constexpr DType kDType = kType;
  static Vec::F load(const T* p) {
    if constexpr (kType == DType::bf16) return Vec::load_bf16(p);
    return Vec::load_f16(p);
  }
  static void store(T* p, Vec::F x) {
    if constexpr (kType == DType::bf16)
      Vec::store_bf16(p, x);
    else
      Vec::store_f16(p, x);
  }
  static Vec::F load_n(const T* p, int n) {
    T lanes[Vec::kLanes] = {};
    std::memcpy(lanes, p, sizeof(T) * n);
    return load(lanes);
  }
  static void store_n(T* p, Vec::F x, int n) {
    T lanes[Vec::kLanes];
    store(lanes, x);
    std::memcpy(p, lanes, sizeof(T) * n);
  }
};

template <>
struct Element<DType::f32> {
  using T = float;
  static constexpr DType kDType = DType::f32;
  static Vec::F load(const T* p) { return Vec::load(p); }
  static void store(T* p, Vec::F x) { Vec::store(p, x); }
  static Vec::F load_n(const T* p, int n) { return Vec::load_n(p, n); }
  static void store_n(T* p, Vec::F x, int n) { Vec::store_n(p, x, n); }
};

// Calls body(Element<dtype>{}): with_element(dtype, [&](auto element) { using E =
// decltype(element); … }).
template <class Body>
inline void with_element(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f32:
      return body(Element<DType::f32>{});
    case DType::bf16:
      return body(Element<DType::bf16>{});
    case DType::f16:
      return body(Element<DType::f16>{});
  }
}

// e^r by Taylor to 1/7!: for |r| <= ln(2)/2 the next term is 5e-9, a tenth of half an ulp. Exactly
// 1 for 0.
inline Vec::F exp_reduced(Vec::F r) {
  Vec::F p = Vec::set1(1.0f / 5040);
  p = Vec::fma(p, r, Vec::set1(1.0f / 720));
  p = Vec::fma(p, r, Vec::set1(1.0f / 120));
  p = Vec::fma(p, r, Vec::set1(1.0f / 24));
  p = Vec::fma(p, r, Vec::set1(1.0f / 6));
  p = Vec::fma(p, r, Vec::set1(0.5f));
  p = Vec::fma(Vec::mul(p, r), r, r);
  return Vec::add(p, Vec::set1(1.0f));
}

// x - n ln 2, ln 2 in two parts; the first has 9 bits, so its product with n is exact even without
// fma.
inline Vec::F minus_ln2(Vec::F x, Vec::F n) {
  return Vec::fma(n, Vec::set1(2.12194440e-4f), Vec::fma(n, Vec::set1(-0.693359375f), x));
}

constexpr float kLog2E = 1.44269504f;  // 1 / ln 2

// e^x to about 2 ulp over the whole range: overflows to infinity, underflows through subnormals to
// 0, keeps NaN.
inline Vec::F exp(Vec::F x) {
  // Beyond these e^x is infinity or 0 in float; clamping keeps the exponent arithmetic below in
  // range.
  x = Vec::max(Vec::set1(-105.0f), Vec::min(Vec::set1(89.0f), x));
  const Vec::F n = Vec::round(Vec::mul(x, Vec::set1(kLog2E)));
  const Vec::F p = exp_reduced(minus_ln2(x, n));
  // 2^n in two factors, because n reaches -151 and 128 where one float exponent cannot follow.
  const Vec::F half = Vec::round(Vec::mul(n, Vec::set1(0.5f)));
  return Vec::mul(Vec::mul(p, Vec::exp2_int(half)), Vec::exp2_int(Vec::sub(n, half)));
}

// The same for x <= 0 with two thirds of the work: what would be subnormal is 0.
inline Vec::F exp_nonpositive(Vec::F x) {
  // From here on n is -127, whose float has no exponent and no digits: 0.
  x = Vec::max(Vec::set1(-88.0f), x);
  const Vec::F n = Vec::round(Vec::mul(x, Vec::set1(kLog2E)));
  return Vec::mul(exp_reduced(minus_ln2(x, n)), Vec::exp2_int(n));
}
