// SPDX-License-Identifier: Apache-2.0
// Embedding lookup: rows of a table as float. Textual, included inside a target's namespace.

inline void embedding(const EmbeddingArgs& args) {
  with_element(args.dtype, [&](auto element) {
    using E = decltype(element);
    const auto* weight = static_cast<const typename E::T*>(args.weight);
    for (int64_t t = args.tokens.begin; t < args.tokens.end; ++t) {
      float* out = args.out + t * args.hidden;
      const int64_t id = args.ids[t];
      if (id < 0 || id >= args.vocab_size) {
        fill_nan(out, args.hidden);
        continue;
      }
      const auto* row = weight + id * args.hidden;
      for_each_vector(args.hidden, [&](int i, auto lanes) {
        store_lanes<Element<DType::f32>>(out + i, load_lanes<E>(row + i, lanes), lanes);
      });
    }
  });
}
