// SPDX-License-Identifier: Apache-2.0
// Causal grouped-query attention over paged KV with an online softmax (Milakov and Gimelshein 2018,
// https://arxiv.org/abs/1805.02867), one query row and KV head at a time. Textual, included inside
// a target's namespace.

// Keys are taken kKeyBlock at a time, blocks starting at multiples of it: a result depends on its
// position only. 32 keys of 128 floats are 16 KiB, half of a first-level cache. kHeadTile query
// heads of one KV head share a block (their scores are 2 KiB of stack); larger groups read it again
// from cache.
constexpr int kKeyBlock = 32;
constexpr int kHeadTile = 16;

// Softmax state of one query head: keys so far give out = sum(exp(score - top) * v) and sum =
// sum(exp(score - top)).
struct RunningSoftmax {
  float top = -std::numeric_limits<float>::infinity();
  float sum = 0.0f;
};

// Where one query row looks: keys 0..position of the sequence whose pages these are.
struct QueryRow {
  const int32_t* pages = nullptr;
  int64_t position = -1;  // < 0: the row belongs to no valid sequence
};

inline QueryRow find_query_row(const AttentionArgs& args, int64_t token) {
  int low = 0, high = args.num_seqs;  // the last sequence starting at or before token
  while (low + 1 < high) {
    const int middle = low + (high - low) / 2;
    if (args.cu_seqlens_q[middle] <= token)
      low = middle;
    else
      high = middle;
  }
  if (args.num_seqs == 0) return {};
  const int64_t position = args.seq_lens[low] - (args.cu_seqlens_q[low + 1] - token);
  const int64_t capacity = static_cast<int64_t>(args.max_pages) * args.page_size;
  if (position >= capacity) return {};
  return {args.block_table + static_cast<int64_t>(low) * args.max_pages, position};
}

// Element offsets of `count` keys from `first` on; false if a page lies outside the cache.
inline bool locate_keys(const AttentionArgs& args, const QueryRow& row, int kv_head, int64_t first,
                        int count, int64_t* offsets) {
  int64_t page_index = first / args.page_size;
  int64_t in_page = first % args.page_size;
  int64_t page = row.pages[page_index];
  for (int j = 0; j < count; ++j) {
    if (in_page == args.page_size) {
      page = row.pages[++page_index];
      in_page = 0;
    }
    if (page < 0 || page >= args.num_pages) return false;
    const int64_t slot = page * args.page_size + in_page++;
    offsets[j] = (slot * args.num_kv_heads + kv_head) * args.head_dim;
  }
  return true;
}

// scores[j] = scale * dot(q, key j) for kKeys keys at once: independent sums hide the latency of
// fma. A key's sum has the same order whatever kKeys is.
template <class E, int kKeys>
inline void score_keys(const float* q, const typename E::T* k, const int64_t* offsets, int head_dim,
                       float scale, float* scores) {
  Vec::F sum[kKeys];
  for (int j = 0; j < kKeys; ++j) sum[j] = Vec::zero();
  for_each_vector(head_dim, [&](int i, auto lanes) {
    const Vec::F x = load_lanes<Element<DType::f32>>(q + i, lanes);
    for (int j = 0; j < kKeys; ++j)
      sum[j] = Vec::fma(x, load_lanes<E>(k + offsets[j] + i, lanes), sum[j]);
  });
  for (int j = 0; j < kKeys; ++j) scores[j] = Vec::reduce_add(sum[j]) * scale;
}

// Turns the scores of a block into exp(score - new top) in place; returns the factor that rescales
// earlier keys.
inline float absorb_scores(float* scores, RunningSoftmax& state) {
  Vec::F top = Vec::set1(state.top);
  for (int j = 0; j < kKeyBlock; j += Vec::kLanes) top = Vec::max(top, Vec::load(scores + j));
  const float new_top = Vec::reduce_max(top);
  Vec::F sum = Vec::zero();
  for (int j = 0; j < kKeyBlock; j += Vec::kLanes) {
    const Vec::F p = exp(Vec::sub(Vec::load(scores + j), Vec::set1(new_top)));
    Vec::store(scores + j, p);
    sum = Vec::add(sum, p);
  }
  float factor[Vec::kLanes];
  Vec::store(factor, exp(Vec::set1(state.top - new_top)));
  state.top = new_top;
  state.sum = state.sum * factor[0] + Vec::reduce_add(sum);
  return factor[0];
}

// out = out * factor + sum over the keys of weights[j] * v[j]. Registers hold kVectors vectors of
// out over all keys.
template <class E, int kVectors>
inline void add_values_tile(const float* weights, const typename E::T* v, const int64_t* offsets,
                            int count, float factor, float* out) {
  Vec::F sum[kVectors];
  for (int i = 0; i < kVectors; ++i)
    sum[i] = Vec::mul(Vec::load(out + i * Vec::kLanes), Vec::set1(factor));
  for (int j = 0; j < count; ++j) {
    const Vec::F weight = Vec::set1(weights[j]);
    for (int i = 0; i < kVectors; ++i)
      sum[i] = Vec::fma(weight, E::load(v + offsets[j] + i * Vec::kLanes), sum[i]);
  }
  for (int i = 0; i < kVectors; ++i) Vec::store(out + i * Vec::kLanes, sum[i]);
}

template <class E>
inline void add_values(const float* weights, const typename E::T* v, const int64_t* offsets,
                       int count, float factor, int head_dim, float* out) {
  // Eight independent sums hide the latency of fma (4 cycles, two per cycle).
  constexpr int kWide = 8;
  int i = 0;
  for (; i + kWide * Vec::kLanes <= head_dim; i += kWide * Vec::kLanes)
    add_values_tile<E, kWide>(weights, v + i, offsets, count, factor, out + i);
  for (; i + Vec::kLanes <= head_dim; i += Vec::kLanes)
    add_values_tile<E, 1>(weights, v + i, offsets, count, factor, out + i);
  if (i == head_dim) return;
  const int lanes = head_dim - i;
  Vec::F sum = Vec::mul(Vec::load_n(out + i, lanes), Vec::set1(factor));
  for (int j = 0; j < count; ++j)
    sum = Vec::fma(Vec::set1(weights[j]), E::load_n(v + offsets[j] + i, lanes), sum);
  Vec::store_n(out + i, sum, lanes);
}

// `heads` query heads (at most kHeadTile, adjacent in q and out) of one row against one KV head.
// False: a bad page.
template <class E>
inline bool attend(const AttentionArgs& args, const QueryRow& row, int kv_head, int heads,
                   const float* q, float* out) {
  const auto* k_cache = static_cast<const typename E::T*>(args.k_cache);
  const auto* v_cache = static_cast<const typename E::T*>(args.v_cache);
  const int head_dim = args.head_dim;
  RunningSoftmax states[kHeadTile];
  float scores[kHeadTile][kKeyBlock];
  int64_t offsets[kKeyBlock];
  for (int i = 0; i < heads * head_dim; ++i) out[i] = 0.0f;
  for (int64_t first = 0; first <= row.position; first += kKeyBlock) {
    const int64_t left = row.position + 1 - first;
    const int count = left < kKeyBlock ? static_cast<int>(left) : kKeyBlock;
    if (!locate_keys(args, row, kv_head, first, count, offsets)) return false;
    for (int g = 0; g < heads; ++g) {
      constexpr int kKeys = 4;
      const float* head = q + g * head_dim;
      int j = 0;
      for (; j + kKeys <= count; j += kKeys)
        score_keys<E, kKeys>(head, k_cache, offsets + j, head_dim, args.scale, scores[g] + j);
      for (; j < count; ++j)
        score_keys<E, 1>(head, k_cache, offsets + j, head_dim, args.scale, scores[g] + j);
    }
    for (int g = 0; g < heads; ++g) {
      for (int j = count; j < kKeyBlock; ++j)
        scores[g][j] = -std::numeric_limits<float>::infinity();  // weight exactly 0
      const float factor = absorb_scores(scores[g], states[g]);
      add_values<E>(scores[g], v_cache, offsets, count, factor, head_dim, out + g * head_dim);
    }
  }
  for (int g = 0; g < heads; ++g) {
    const Vec::F inverse = Vec::div(Vec::set1(1.0f), Vec::set1(states[g].sum));
    for_each_vector(head_dim, [&](int i, auto lanes) {
      using F32 = Element<DType::f32>;
      float* p = out + g * head_dim + i;
      store_lanes<F32>(p, Vec::mul(load_lanes<F32>(p, lanes), inverse), lanes);
    });
  }
  return true;
}

inline void attention(const AttentionArgs& args) {
  with_element(args.kv_dtype, [&](auto element) {
    using E = decltype(element);
    const int group = args.num_heads / args.num_kv_heads;
    for (int64_t unit = args.units.begin; unit < args.units.end; ++unit) {
      const int64_t token = unit / args.num_kv_heads;
      const int kv_head = static_cast<int>(unit % args.num_kv_heads);
      const QueryRow row = find_query_row(args, token);
      const int64_t start =
          (token * args.num_heads + static_cast<int64_t>(kv_head) * group) * args.head_dim;
      bool valid = row.position >= 0;
      for (int head = 0; valid && head < group; head += kHeadTile) {
        const int heads = group - head < kHeadTile ? group - head : kHeadTile;
        const int64_t offset = start + static_cast<int64_t>(head) * args.head_dim;
        valid = attend<E>(args, row, kv_head, heads, args.q + offset, args.out + offset);
      }
      if (!valid) fill_nan(args.out + start, static_cast<int64_t>(group) * args.head_dim);
    }
  });
}
