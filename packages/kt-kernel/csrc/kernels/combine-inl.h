// SPDX-License-Identifier: Apache-2.0
// The weighted sum of the experts' rows of each token (combine), in slot order. Textual.

inline void combine(const CombineArgs& args) {
  with_element(args.dtype, [&](auto element) {
    using E = decltype(element);
    for (int64_t token = args.tokens.begin; token < args.tokens.end; ++token) {
      const int32_t* rows = args.slot_row + token * args.top_k;
      const float* weights = args.weights + token * args.top_k;
      auto* out = static_cast<typename E::T*>(args.out) + token * args.hidden;
      for (int i = 0; i < args.hidden; i += Vec::kLanes) {
        const int width = args.hidden - i < Vec::kLanes ? args.hidden - i : Vec::kLanes;
        Vec::F sum = Vec::zero();
        for (int slot = 0; slot < args.top_k; ++slot) {
          if (rows[slot] < 0) continue;
          // y rows are padded to whole vectors (y_stride), so a full load is always in bounds.
          const Vec::F y = Vec::load(args.y + rows[slot] * args.y_stride + i);
          sum = Vec::fma(Vec::set1(weights[slot]), y, sum);
        }
        if (args.accumulate) sum = Vec::add(E::load_n(out + i, width), sum);
        E::store_n(out + i, sum, width);
      }
    }
  });
}
