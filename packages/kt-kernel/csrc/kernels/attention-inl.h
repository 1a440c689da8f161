// SPDX-License-Identifier: Apache-2.0
// Causal grouped-query attention over paged KV, blocked over keys with an online softmax (Dao et
// al. 2022, https://arxiv.org/abs/2205.14135; Milakov and Gimelshein 2018,
// https://arxiv.org/abs/1805.02867). Textual, included inside a target's namespace.

// Keys relative to the first of a block or split.
struct KeyRange {
  int begin, end;
  bool operator==(const KeyRange& other) const { return begin == other.begin && end == other.end; }
};

// Of the `count` keys from `first` on, those that the query at `position` sees; begin >= end: none.
inline KeyRange visible_keys(const AttentionArgs& args, int64_t position, int64_t first,
                             int count = kKeyBlock) {
  const int64_t begin = args.window > 0 ? position + 1 - args.window - first : 0;
  const int64_t end = position + 1 - first;
  return {static_cast<int>(begin < 0       ? 0
                           : begin > count ? count
                                           : begin),
          static_cast<int>(end < 0       ? 0
                           : end > count ? count
                                         : end)};
}

// Where the keys of a split lie in the cache: slot * num_kv_heads + kv_head, or -1 for keys that no
// row of the tile sees. A few more for looking ahead.
using KeyPlaces = int64_t[kSplitKeys + kAhead];

// False if a page lies outside the cache.
inline bool locate_keys(const AttentionArgs& args, int64_t first, KeyRange keys,
                        KeyPlaces& places) {
  const int32_t* pages =
      args.block_table + static_cast<int64_t>(args.tile.sequence) * args.max_pages;
  for (int64_t& place : places) place = -1;
  int64_t page_index = (first + keys.begin) / args.page_size;
  int64_t in_page = (first + keys.begin) % args.page_size;
  for (int j = keys.begin; j < keys.end; ++page_index, in_page = 0) {
    if (page_index >= args.max_pages) return false;
    const int64_t page = pages[page_index];
    if (page < 0 || page >= args.num_pages) return false;
    for (; j < keys.end && in_page < args.page_size; ++j, ++in_page)
      places[j] = (page * args.page_size + in_page) * args.num_kv_heads + args.kv_head;
  }
  return true;
}

inline void clear_sums(const AttentionSums& sums, int64_t heads, int head_pad) {
  for (int64_t i = 0; i < heads * head_pad; ++i) sums.acc[i] = 0.0f;
  for (int64_t i = 0; i < heads; ++i) sums.sum[i] = 0.0f;
  for (int64_t i = 0; i < heads; ++i) sums.top[i] = -std::numeric_limits<float>::infinity();
}

// exp(top - new_top); exactly 1 for equal ones, and 0 where nothing was seen before.
inline float rescale_factor(float top, float new_top) {
  if (top == new_top) return 1.0f;
  float factor[Vec::kLanes];
  Vec::store(factor, exp(Vec::set1(top - new_top)));
  return factor[0];
}

// Turns one head's scores of a block into weights exp(score - top) in place, adds them to the sums
// and returns the factor that rescales earlier ones. Scales of int8 keys and values come in here.
template <bool kScaled>
inline float absorb_scores(float* scores, KeyRange keys, const float* k_scales,
                           const float* v_scales, float* top, float* sum) {
  const float nothing = -std::numeric_limits<float>::infinity();  // a weight of exactly 0
  const int begin = keys.begin / Vec::kLanes * Vec::kLanes;
  const int end = (keys.end + Vec::kLanes - 1) / Vec::kLanes * Vec::kLanes;
  if constexpr (kScaled) {
    for (int j = begin; j < end; j += Vec::kLanes)
      Vec::store(scores + j, Vec::mul(Vec::load(scores + j), Vec::load(k_scales + j)));
  }
  for (int j = begin; j < keys.begin; ++j) scores[j] = nothing;
  for (int j = keys.end; j < end; ++j) scores[j] = nothing;
  Vec::F highest = Vec::set1(*top);
  for (int j = begin; j < end; j += Vec::kLanes) highest = Vec::max(highest, Vec::load(scores + j));
  const float new_top = Vec::reduce_max(highest);
  // All scores -infinity: exp(score - 0) is 0, where exp(score - top) would be NaN.
  const Vec::F shift = Vec::set1(new_top == nothing ? 0.0f : new_top);
  Vec::F added = Vec::zero();
  for (int j = begin; j < end; j += Vec::kLanes) {
    Vec::F weight = exp(Vec::sub(Vec::load(scores + j), shift));
    added = Vec::add(added, weight);
    if constexpr (kScaled) weight = Vec::mul(weight, Vec::load(v_scales + j));
    Vec::store(scores + j, weight);
  }
  const float factor = rescale_factor(*top, new_top);
  *top = new_top;
  *sum = *sum * factor + Vec::reduce_add(added);
  return factor;
}

// The block of keys from `first` on, which lie at places[0], ..., for the whole tile.
template <class E>
inline void attend_block(const AttentionArgs& args, int64_t first, const int64_t* places,
                         const AttentionSums& sums) {
  using T = typename E::T;
  const AttentionWork& work = args.work;
  const int group = args.group(), head_dim = args.head_dim, head_pad = args.head_pad();
  const int64_t last_position = args.tile.position + args.tile.rows - 1;
  const KeyRange keys{visible_keys(args, args.tile.position, first).begin,
                      visible_keys(args, last_position, first).end};
  if (keys.begin >= keys.end) return;
  float k_scales[kKeyBlock], v_scales[kKeyBlock];
  if constexpr (kHasScale<E>) {
    for (int j = 0; j < kKeyBlock; ++j) {
      k_scales[j] = places[j] < 0 ? 0.0f : args.k_scales[places[j]];
      v_scales[j] = places[j] < 0 ? 0.0f : args.v_scales[places[j]];
    }
  }
  const int first_panel = keys.begin / kPanel, end_panel = (keys.end + kPanel - 1) / kPanel;
  pack_keys<E>(static_cast<const T*>(args.k_cache), places, first_panel, end_panel, head_dim,
               work.k);
  pack_values<E>(static_cast<const T*>(args.v_cache), places, keys.begin, keys.end, head_dim,
                 work.v);
  multiply(
      {work.q, head_dim, work.k, key_stride(head_dim), head_dim, nullptr, work.scores, kKeyBlock},
      args.heads(), first_panel, end_panel);
  for (int row = 0; row < args.tile.rows;) {
    // Rows that see the same keys of the block go together: no weight meets a value that its query
    // does not see, which may be NaN.
    const KeyRange seen = visible_keys(args, args.tile.position + row, first);
    int next = row + 1;
    while (next < args.tile.rows && visible_keys(args, args.tile.position + next, first) == seen)
      ++next;
    const int64_t head = static_cast<int64_t>(row) * group;
    const int64_t heads = static_cast<int64_t>(next - row) * group;
    row = next;
    if (seen.begin >= seen.end) continue;
    for (int64_t h = head; h < head + heads; ++h)
      work.factors[h] = absorb_scores<kHasScale<E>>(work.scores + h * kKeyBlock, seen, k_scales,
                                                    v_scales, sums.top + h, sums.sum + h);
    multiply({work.scores + head * kKeyBlock + seen.begin, kKeyBlock, work.v + seen.begin * kPanel,
              kValueStride, seen.end - seen.begin, work.factors + head, sums.acc + head * head_pad,
              head_pad},
             heads, 0, (head_dim + kPanel - 1) / kPanel);
  }
}

// The tile's sums over the keys of one split.
template <class E>
inline void attend_split(const AttentionArgs& args, int64_t split, const AttentionSums& sums) {
  const int64_t heads = args.heads();
  clear_sums(sums, heads, args.head_pad());
  const int64_t first = split * kSplitKeys;
  const int64_t last_position = args.tile.position + args.tile.rows - 1;
  KeyPlaces places;
  const KeyRange keys{visible_keys(args, args.tile.position, first, kSplitKeys).begin,
                      visible_keys(args, last_position, first, kSplitKeys).end};
  if (!locate_keys(args, first, keys, places)) {
    fill_nan(sums.sum, heads);
    fill_nan(sums.top, heads);  // so that merging does not take it for nothing seen
    return;
  }
  for (int block = 0; block < kSplitKeys; block += kKeyBlock)
    attend_block<E>(args, first + block, places + block, sums);
}

// total += next, head by head.
inline void merge_sums(const AttentionSums& total, const AttentionSums& next, int64_t heads,
                       int head_pad) {
  const float nothing = -std::numeric_limits<float>::infinity();
  for (int64_t h = 0; h < heads; ++h) {
    // A head that saw nothing of a split keeps its sums to the last bit, whoever shares its tile.
    if (next.top[h] == nothing) continue;
    const float top = total.top[h] > next.top[h] ? total.top[h] : next.top[h];
    const float factor = rescale_factor(total.top[h], top);
    const float next_factor = rescale_factor(next.top[h], top);
    total.top[h] = top;
    total.sum[h] = total.sum[h] * factor + next.sum[h] * next_factor;
    for (int64_t i = h * head_pad; i < (h + 1) * head_pad; i += Vec::kLanes) {
      const Vec::F scaled = Vec::mul(Vec::load(total.acc + i), Vec::set1(factor));
      Vec::store(total.acc + i, Vec::fma(Vec::load(next.acc + i), Vec::set1(next_factor), scaled));
    }
  }
}

// out = acc / sum, the sink counted in the sum.
inline void finish_sums(const AttentionArgs& args, const AttentionSums& sums) {
  using F32 = Element<DType::f32>;
  const int group = args.group(), head_pad = args.head_pad();
  for (int64_t h = 0; h < args.heads(); ++h) {
    const int64_t head = static_cast<int64_t>(args.kv_head) * group + h % group;
    float factor = 1.0f, sum = sums.sum[h];
    if (args.sinks != nullptr) {
      const float sink = args.sinks[head];
      const float top = sums.top[h] > sink ? sums.top[h] : sink;
      factor = rescale_factor(sums.top[h], top);
      sum = sum * factor + rescale_factor(sink, top);
    }
    const Vec::F scale = Vec::set1(factor / sum);
    const float* acc = sums.acc + h * head_pad;
    float* out =
        args.out + ((args.tile.first_row + h / group) * args.num_heads + head) * args.head_dim;
    for_each_vector(args.head_dim, [&](int i, auto lanes) {
      store_lanes<F32>(out + i, Vec::mul(Vec::load(acc + i), scale), lanes);
    });
  }
}

inline void attention(const AttentionArgs& args) {
  const int group = args.group();
  for (int64_t h = 0; h < args.heads(); ++h) {
    const int64_t row = args.tile.first_row + h / group;
    const float* from =
        args.q + (row * args.num_heads + static_cast<int64_t>(args.kv_head) * group + h % group) *
                     args.head_dim;
    float* to = args.work.q + h * args.head_dim;
    for (int i = 0; i < args.head_dim; ++i) to[i] = from[i] * args.scale;
  }
  with_kv_element(args.kv_dtype, [&](auto element) {
    using E = decltype(element);
    if (args.partials != nullptr)
      return attend_split<E>(args, args.first_split,
                             attention_sums(args.partials, args.heads(), args.head_pad()));
    clear_sums(args.work.total, args.heads(), args.head_pad());
    for (int64_t split = args.first_split; split < args.end_split; ++split) {
      attend_split<E>(args, split, args.work.split);
      merge_sums(args.work.total, args.work.split, args.heads(), args.head_pad());
    }
    finish_sums(args, args.work.total);
  });
}

inline void merge_attention(const AttentionArgs& args) {
  const int64_t size = attention_sums_floats(args.heads(), args.head_pad());
  clear_sums(args.work.total, args.heads(), args.head_pad());
  for (int64_t split = args.first_split; split < args.end_split; ++split)
    merge_sums(args.work.total,
               attention_sums(args.partials + (split - args.first_split) * size, args.heads(),
                              args.head_pad()),
               args.heads(), args.head_pad());
  finish_sums(args, args.work.total);
}
