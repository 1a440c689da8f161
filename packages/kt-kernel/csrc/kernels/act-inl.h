// SPDX-License-Identifier: Apache-2.0
// Activations on their way into a gemm: rows converted into a tile of an ActMode (prepare_rows),
// and prepared rows collected into one (gather_rows); and the elementwise add. Textual, included
// inside a target's namespace.

// One block of 32 floats to int8: scale = absmax / 127, q = round(x / scale), and the sums of q.
inline void quantize_block(const float* x, const ActTile& out, int64_t at) {
  Vec::F top = Vec::zero();
  Vec::F poison = Vec::zero();  // x * 0 is NaN exactly for NaN and infinity
  for (int i = 0; i < kBlock; i += Vec::kLanes) {
    const Vec::F v = Vec::load(x + i);
    top = Vec::max(top, Vec::abs(v));
    poison = Vec::fma(v, Vec::zero(), poison);
  }
  auto* const q = static_cast<int8_t*>(out.data) + at * kBlock;
  const int zero = out.biased() ? 128 : 0;
  int16_t* const sums = out.sums + at * 2;
  const float absmax = Vec::reduce_max(top);
  const float bad = Vec::reduce_add(poison);
  // Below 1e-30 127 / absmax would approach overflow; such a block contributes nothing a float sum
  // could hold.
  const bool tiny = !(absmax >= 1e-30f);
  if (bad != bad || tiny) {
    std::memset(q, zero, kBlock);
    sums[0] = sums[1] = 0;
    out.scales[at] = out.scaled_sums[at] =
        bad != bad ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    return;
  }
  const Vec::F inverse = Vec::set1(127.0f / absmax);
  for (int i = 0; i < kBlock; i += Vec::kLanes)
    Vec::store_int8(q + i, Vec::mul(Vec::load(x + i), inverse));
  for (int half = 0; half < 2; ++half) {
    int sum = 0;
    for (int i = 0; i < kSumGroup; ++i) sum += q[half * kSumGroup + i];
    sums[half] = static_cast<int16_t>(sum);
  }
  for (int i = 0; i < kBlock; ++i) q[i] = static_cast<int8_t>(q[i] ^ zero);
  out.scales[at] = absmax / 127.0f;
  out.scaled_sums[at] = out.scales[at] * static_cast<float>(sums[0] + sums[1]);
}

template <class Element>
inline void prepare_row(const typename Element::T* x, const PrepareRowsArgs& args, int64_t row) {
  const ActTile& out = args.out;
  for (int64_t block = args.blocks.begin; block < args.blocks.end; ++block) {
    const int64_t begin = (block - args.blocks.begin) * kBlock;
    const int64_t at = block * out.rows + row;
    alignas(32) float lanes[kBlock];
    float* const to =
        out.mode == ActMode::int8_g32 ? lanes : static_cast<float*>(out.data) + at * kBlock;
    for (int i = 0; i < kBlock; i += Vec::kLanes) {
      const int64_t left = args.columns - begin - i;
      Vec::F v = left >= Vec::kLanes ? Element::load(x + begin + i)
                 : left > 0          ? Element::load_n(x + begin + i, static_cast<int>(left))
                                     : Vec::zero();
      if (out.mode == ActMode::bf16) v = Vec::round_bf16(v);
      Vec::store(to + i, v);
    }
    if (out.mode == ActMode::int8_g32) quantize_block(lanes, out, at);
  }
}

inline void prepare_rows(const PrepareRowsArgs& args) {
  with_element(args.dtype, [&](auto element) {
    using E = decltype(element);
    const auto* x = static_cast<const typename E::T*>(args.x);
    for (int64_t row = args.rows.begin; row < args.rows.end; ++row)
      prepare_row<E>(x + (row - args.rows.begin) * args.stride, args, row);
  });
}

inline void gather_rows(const GatherRowsArgs& args) {
  const ActTile& out = args.out;
  const int64_t blocks = out.k_padded / kBlock;
  const bool integer = out.mode == ActMode::int8_g32;
  const uint64_t zero = out.biased() ? 0x8080808080808080 : 0;
  for (int row = 0; row < out.rows; ++row) {
    const ActTile from = args.row_of(args.ids[row]);
    const auto* source = static_cast<const std::byte*>(from.data);
    auto* const to = static_cast<std::byte*>(out.data);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t at = block * out.rows + row;
      if (!integer) {
        constexpr int64_t kBytes = kBlock * sizeof(float);
        std::memcpy(to + at * kBytes, source + block * kBytes, kBytes);
        continue;
      }
      uint64_t words[kBlock / sizeof(uint64_t)];
      std::memcpy(words, source + block * kBlock, kBlock);
      for (uint64_t& word : words) word ^= zero;
      std::memcpy(to + at * kBlock, words, kBlock);
      out.scales[at] = from.scales[block];
      out.scaled_sums[at] = from.scaled_sums[block];
      std::memcpy(out.sums + 2 * at, from.sums + 2 * block, 2 * sizeof(int16_t));
    }
  }
}

inline void add(const AddArgs& args) {
  int64_t i = args.elements.begin;
  for (; i + Vec::kLanes <= args.elements.end; i += Vec::kLanes)
    Vec::store(args.out + i, Vec::add(Vec::load(args.x + i), Vec::load(args.y + i)));
  if (const int left = static_cast<int>(args.elements.end - i); left > 0)
    Vec::store_n(args.out + i,
                 Vec::add(Vec::load_n(args.x + i, left), Vec::load_n(args.y + i, left)), left);
}
