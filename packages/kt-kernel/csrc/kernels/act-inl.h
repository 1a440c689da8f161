// SPDX-License-Identifier: Apache-2.0
// Activations: rows converted into an ActMode for gemm (prepare_rows), and the elementwise add.
// Textual, included inside a target's namespace.

// One block of 32 floats to int8: scale = absmax / 127, q = round(x / scale), and the sums of q
// per 16.
inline void quantize_block(const float* x, int8_t* q, float* scale, int16_t* sums) {
  Vec::F top = Vec::zero();
  Vec::F poison = Vec::zero();  // x * 0 is NaN exactly for NaN and infinity
  for (int i = 0; i < kBlock; i += Vec::kLanes) {
    const Vec::F v = Vec::load(x + i);
    top = Vec::max(top, Vec::abs(v));
    poison = Vec::fma(v, Vec::zero(), poison);
  }
  const float absmax = Vec::reduce_max(top);
  const float bad = Vec::reduce_add(poison);
  // Below 1e-30 127 / absmax would approach overflow; such a block contributes nothing a float sum
  // could hold.
  const bool tiny = !(absmax >= 1e-30f);
  if (bad != bad || tiny) {
    std::memset(q, 0, kBlock);
    *scale = bad != bad ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    sums[0] = sums[1] = 0;
    return;
  }
  const Vec::F inverse = Vec::set1(127.0f / absmax);
  for (int i = 0; i < kBlock; i += Vec::kLanes)
    Vec::store_int8(q + i, Vec::mul(Vec::load(x + i), inverse));
  *scale = absmax / 127.0f;
  for (int half = 0; half < 2; ++half) {
    int sum = 0;
    for (int i = 0; i < kSumGroup; ++i) sum += q[half * kSumGroup + i];
    sums[half] = static_cast<int16_t>(sum);
  }
}

template <class Element>
inline void prepare_row(const typename Element::T* x, int k, const ActRows& out, int64_t row) {
  for (int block = 0; block < out.k_padded; block += kBlock) {
    alignas(32) float lanes[kBlock];
    for (int i = 0; i < kBlock; i += Vec::kLanes) {
      const int left = k - block - i;
      Vec::F v = left >= Vec::kLanes ? Element::load(x + block + i)
                 : left > 0          ? Element::load_n(x + block + i, left)
                                     : Vec::zero();
      if (out.mode == ActMode::bf16) v = Vec::round_bf16(v);
      Vec::store(lanes + i, v);
    }
    const int64_t at = row * out.k_padded + block;
    if (out.mode == ActMode::int8_g32) {
      quantize_block(lanes, static_cast<int8_t*>(out.data) + at, out.scales + at / kBlock,
                     out.sums + at / kSumGroup);
    } else {
      std::memcpy(static_cast<float*>(out.data) + at, lanes, sizeof lanes);
    }
  }
}

inline void prepare_rows(const PrepareRowsArgs& args) {
  with_element(args.dtype, [&](auto element) {
    using E = decltype(element);
    const auto* x = static_cast<const typename E::T*>(args.x);
    for (int64_t row = args.rows.begin; row < args.rows.end; ++row)
      prepare_row<E>(x + row * args.stride, args.k, args.out, row);
  });
}

inline void add(const AddArgs& args) {
  int64_t i = args.elements.begin;
  for (; i + Vec::kLanes <= args.elements.end; i += Vec::kLanes)
    Vec::store(args.out + i, Vec::add(Vec::load(args.x + i), Vec::load(args.y + i)));
  if (const int left = static_cast<int>(args.elements.end - i); left > 0)
    Vec::store_n(args.out + i,
                 Vec::add(Vec::load_n(args.x + i, left), Vec::load_n(args.y + i, left)), left);
}
