// SPDX-License-Identifier: Apache-2.0
// The KV cache's elements: those of element-inl.h, and int8 heads with a scale. No kernels here.
// Textual, included inside a target's namespace.

struct KvInt8 {  // loads the integers as floats; the caller applies the scale
  using T = int8_t;
  static Vec::F load(const T* p) { return Vec::load_int8(p); }
  static Vec::F load_n(const T* p, int n) {
    T lanes[Vec::kLanes] = {};
    std::memcpy(lanes, p, n);
    return Vec::load_int8(lanes);
  }
  static void store(T* p, Vec::F x) { Vec::store_int8(p, x); }
  static void store_n(T* p, Vec::F x, int n) {
    T lanes[Vec::kLanes];
    Vec::store_int8(lanes, x);
    std::memcpy(p, lanes, n);
  }
};

template <class E>
inline constexpr bool kHasScale = false;
template <>
inline constexpr bool kHasScale<KvInt8> = true;

template <class Body>
inline void with_kv_element(KvDType dtype, Body&& body) {
  switch (dtype) {
    case KvDType::f32:
      return body(Element<DType::f32>{});
    case KvDType::bf16:
      return body(Element<DType::bf16>{});
    case KvDType::f16:
      return body(Element<DType::f16>{});
    case KvDType::int8:
      return body(KvInt8{});
  }
}

// The scale of an int8 head and what its elements are multiplied by before rounding.
struct HeadScale {
  float scale;
  float inverse;
};

// Watches the elements of a head go by: their largest magnitude, and whether any is not finite.
struct HeadRange {
  Vec::F top = Vec::zero();
  Vec::F poison = Vec::zero();  // x * 0 is NaN exactly for NaN and infinity

  void see(Vec::F x) {
    top = Vec::max(top, Vec::abs(x));
    poison = Vec::fma(x, Vec::zero(), poison);
  }
  // A head that is not finite gets a NaN scale, and so do all scores or sums it takes part in.
  // Below 1e-30 127 / absmax would approach overflow; such a head is stored as zeros.
  HeadScale scale() const {
    const float bad = Vec::reduce_add(poison);
    if (bad != bad) return {std::numeric_limits<float>::quiet_NaN(), 0.0f};
    const float absmax = Vec::reduce_max(top);
    if (absmax < 1e-30f) return {0.0f, 0.0f};
    return {absmax / 127.0f, 127.0f / absmax};
  }
};
