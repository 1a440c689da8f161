// SPDX-License-Identifier: Apache-2.0
// RMSNorm (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467). Textual, included inside a
// target's namespace.

inline void rms_norm(const RmsNormArgs& args) {
  using E = Element<DType::f32>;
  for (int64_t row = args.rows.begin; row < args.rows.end; ++row) {
    const float* x = args.x + row * args.columns;
    float* out = args.out + row * args.columns;
    Vec::F squares = Vec::zero();
    for_each_vector(args.columns, [&](int i, auto lanes) {
      const Vec::F v = load_lanes<E>(x + i, lanes);
      squares = Vec::fma(v, v, squares);
    });
    const float mean = Vec::reduce_add(squares) / static_cast<float>(args.columns);
    const Vec::F inverse = Vec::div(Vec::set1(1.0f), Vec::sqrt(Vec::set1(mean + args.eps)));
    for_each_vector(args.columns, [&](int i, auto lanes) {
      const Vec::F v = Vec::mul(load_lanes<E>(x + i, lanes), inverse);
      store_lanes<E>(out + i, Vec::mul(v, load_lanes<E>(args.weight + i, lanes)), lanes);
    });
  }
}
