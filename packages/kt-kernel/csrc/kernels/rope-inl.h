// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864; rotate-half pairing)
// fused with the write of K and V into their cache pages. Textual, included inside a target's
// namespace.

// The rotation of one position: [half] cosines and sines, or null for a position outside the table.
struct Rotation {
  const float* cos;
  const float* sin;
  int half;
};

// Calls put(i, x, lanes) for the vectors of one head of `in` with its first 2 * half elements
// rotated; elements are read before they are put.
template <class Put>
inline void rotate_head(const float* in, const Rotation& rotation, int head_dim, Put&& put) {
  using F32 = Element<DType::f32>;
  const int half = rotation.half;
  for_each_vector(half, [&](int i, auto lanes) {
    const Vec::F x = load_lanes<F32>(in + i, lanes);
    const Vec::F y = load_lanes<F32>(in + half + i, lanes);
    Vec::F c = Vec::set1(std::numeric_limits<float>::quiet_NaN());
    Vec::F s = c;
    if (rotation.cos != nullptr) {
      c = load_lanes<F32>(rotation.cos + i, lanes);
      s = load_lanes<F32>(rotation.sin + i, lanes);
    }
    put(i, Vec::sub(Vec::mul(x, c), Vec::mul(y, s)), lanes);
    put(half + i, Vec::add(Vec::mul(y, c), Vec::mul(x, s)), lanes);
  });
  const int rotated = 2 * half;
  for_each_vector(head_dim - rotated, [&](int i, auto lanes) {
    put(rotated + i, load_lanes<F32>(in + rotated + i, lanes), lanes);
  });
}

// Stores one rotated head, an int8 one after a first pass over it for its scale.
template <class E>
inline void write_head(const float* in, const Rotation& rotation, int head_dim, typename E::T* out,
                       float* scale) {
  Vec::F inverse = Vec::set1(1.0f);
  bool zero = false;
  if constexpr (kHasScale<E>) {
    HeadRange range;
    // Lanes beyond a ragged end may hold NaN (0 * NaN of an unknown position); they all would.
    rotate_head(in, rotation, head_dim, [&](int, Vec::F x, auto) { range.see(x); });
    const HeadScale chosen = range.scale();
    *scale = chosen.scale;
    inverse = Vec::set1(chosen.inverse);
    zero = chosen.inverse == 0.0f;  // not x * 0: x may be NaN, which no integer is
  }
  rotate_head(in, rotation, head_dim, [&](int i, Vec::F x, auto lanes) {
    if constexpr (kHasScale<E>) x = zero ? Vec::zero() : Vec::mul(x, inverse);
    store_lanes<E>(out + i, x, lanes);
  });
}

inline void rope_write_kv(const RopeWriteKvArgs& args) {
  with_kv_element(args.kv_dtype, [&](auto element) {
    using E = decltype(element);
    using F32 = Element<DType::f32>;
    auto* k_cache = static_cast<typename E::T*>(args.k_cache);
    auto* v_cache = static_cast<typename E::T*>(args.v_cache);
    const int64_t kv_row = static_cast<int64_t>(args.num_kv_heads) * args.head_dim;
    const int half = args.rotary_dim / 2;
    const Rotation none{nullptr, nullptr, 0};
    for (int64_t t = args.tokens.begin; t < args.tokens.end; ++t) {
      const int64_t position = args.positions[t];
      const bool known = position >= 0 && position < args.max_positions;
      const Rotation rotation{known ? args.cos + position * half : nullptr,
                              known ? args.sin + position * half : nullptr, half};
      float* q = args.q + t * args.num_heads * args.head_dim;
      for (int head = 0; head < args.num_heads; ++head, q += args.head_dim)
        rotate_head(q, rotation, args.head_dim,
                    [&](int i, Vec::F x, auto lanes) { store_lanes<F32>(q + i, x, lanes); });
      const int64_t slot = args.slot_mapping[t];
      if (slot < 0 || slot >= args.num_slots) continue;
      for (int head = 0; head < args.num_kv_heads; ++head) {
        const int64_t at = static_cast<int64_t>(head) * args.head_dim;
        const int64_t scale = kHasScale<E> ? slot * args.num_kv_heads + head : 0;
        write_head<E>(args.k + t * kv_row + at, rotation, args.head_dim,
                      k_cache + slot * kv_row + at, args.k_scales + scale);
        write_head<E>(args.v + t * kv_row + at, none, args.head_dim, v_cache + slot * kv_row + at,
                      args.v_scales + scale);
      }
    }
  });
}
