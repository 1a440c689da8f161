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

// out = one head of `in`, its first 2 * half elements rotated. out may be `in`.
template <class E>
inline void rotate_head(const float* in, const Rotation& rotation, int head_dim,
                        typename E::T* out) {
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
    store_lanes<E>(out + i, Vec::sub(Vec::mul(x, c), Vec::mul(y, s)), lanes);
    store_lanes<E>(out + half + i, Vec::add(Vec::mul(y, c), Vec::mul(x, s)), lanes);
  });
  const int rotated = 2 * half;
  for_each_vector(head_dim - rotated, [&](int i, auto lanes) {
    store_lanes<E>(out + rotated + i, load_lanes<F32>(in + rotated + i, lanes), lanes);
  });
}

inline void rope_write_kv(const RopeWriteKvArgs& args) {
  with_element(args.kv_dtype, [&](auto element) {
    using E = decltype(element);
    auto* k_cache = static_cast<typename E::T*>(args.k_cache);
    auto* v_cache = static_cast<typename E::T*>(args.v_cache);
    const int64_t kv_row = static_cast<int64_t>(args.num_kv_heads) * args.head_dim;
    const int half = args.rotary_dim / 2;
    for (int64_t t = args.tokens.begin; t < args.tokens.end; ++t) {
      const int64_t position = args.positions[t];
      const bool known = position >= 0 && position < args.max_positions;
      const Rotation rotation{known ? args.cos + position * half : nullptr,
                              known ? args.sin + position * half : nullptr, half};
      float* q = args.q + t * args.num_heads * args.head_dim;
      for (int head = 0; head < args.num_heads; ++head, q += args.head_dim)
        rotate_head<Element<DType::f32>>(q, rotation, args.head_dim, q);
      const int64_t slot = args.slot_mapping[t];
      if (slot < 0 || slot >= args.num_slots) continue;
      const float* k = args.k + t * kv_row;
      auto* k_out = k_cache + slot * kv_row;
      for (int head = 0; head < args.num_kv_heads; ++head)
        rotate_head<E>(k + head * args.head_dim, rotation, args.head_dim,
                       k_out + head * args.head_dim);
      const float* v = args.v + t * kv_row;
      auto* v_out = v_cache + slot * kv_row;
      for_each_vector(static_cast<int>(kv_row), [&](int i, auto lanes) {
        store_lanes<E>(v_out + i, load_lanes<Element<DType::f32>>(v + i, lanes), lanes);
      });
    }
  });
}
