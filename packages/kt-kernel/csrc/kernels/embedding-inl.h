// SPDX-License-Identifier: Apache-2.0
// Embedding lookup: rows of a table as float, of floats or of blocks that are unpacked here.
// Textual, included inside a target's namespace.

template <class Struct>
inline void embedding_row(const EmbeddingArgs& args, int64_t id, float* out) {
  constexpr FormatInfo kInfo = Struct::kInfo;
  if constexpr (kInfo.source_k == 0) {
    using E = typename Struct::Source;
    const auto* row = static_cast<const typename E::T*>(args.weight) + id * args.hidden;
    for_each_vector(args.hidden, [&](int i, auto lanes) {
      store_lanes<Element<DType::f32>>(out + i, load_lanes<E>(row + i, lanes), lanes);
    });
  } else {
    const int blocks = args.hidden / kInfo.source_k;
    const auto* row =
        static_cast<const uint8_t*>(args.weight) + id * (int64_t{blocks} * kInfo.source_bytes);
    for (int block = 0; block < blocks; ++block)
      Struct::values(row + int64_t{block} * kInfo.source_bytes, out + block * kInfo.source_k);
  }
}

template <class Struct>
inline void embedding_of(const EmbeddingArgs& args) {
  for (int64_t t = args.tokens.begin; t < args.tokens.end; ++t) {
    float* const out = args.out + t * args.hidden;
    const int64_t id = args.ids[t];
    if constexpr (Struct::kInfo.self_scaled()) {
      if (id >= 0 && id < args.vocab_size) {
        embedding_row<Struct>(args, id, out);
        continue;
      }
    }
    fill_nan(out, args.hidden);
  }
}

inline void embedding(const EmbeddingArgs& args) {
  switch (args.format) {
#define KT_CASE(name, Struct) \
  case Format::name:          \
    return embedding_of<Struct>(args);
    KT_FORMATS(KT_CASE)
#undef KT_CASE
  }
}
