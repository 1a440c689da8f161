// SPDX-License-Identifier: Apache-2.0
// Causal grouped-query attention over paged KV, blocked over keys with an online softmax (Dao et
// al. 2022, https://arxiv.org/abs/2205.14135; Milakov and Gimelshein 2018,
// https://arxiv.org/abs/1805.02867). Textual, included inside a target's namespace.

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

// top - new_top, whose exp rescales sums: exactly 0 for equal ones, also where nothing was seen.
inline float lowered(float top, float new_top) { return top == new_top ? 0.0f : top - new_top; }

inline float rescale_factor(float top, float new_top) {
  float factor[Vec::kLanes];
  Vec::store(factor, exp_nonpositive(Vec::set1(lowered(top, new_top))));
  return factor[0];
}

// Scores of `heads` heads for the same keys of a block, as their sums take them in.
struct SeenScores {
  float* scores;  // [heads][kKeyBlock]
  int64_t heads;
  KeyRange keys;
  const float* k_scales;  // of int8 keys and values
  const float* v_scales;
  float* top;  // [heads], as the next two
  float* sum;
  float* factors;
};

// Turns scores into weights exp(score - top) in place and adds them to the sums; factors rescale
// earlier weights. In passes over all heads, so that no head's arithmetic waits for another's.
template <bool kScaled>
inline void absorb_scores(const SeenScores& x) {
  const float nothing = -std::numeric_limits<float>::infinity();  // a weight of exactly 0
  const int begin = x.keys.begin / Vec::kLanes * Vec::kLanes;
  const int end = (x.keys.end + Vec::kLanes - 1) / Vec::kLanes * Vec::kLanes;
  for (int64_t h = 0; h < x.heads; ++h) {
    float* scores = x.scores + h * kKeyBlock;
    if constexpr (kScaled) {
      for (int j = begin; j < end; j += Vec::kLanes)
        Vec::store(scores + j, Vec::mul(Vec::load(scores + j), Vec::load(x.k_scales + j)));
    }
    for (int j = begin; j < x.keys.begin; ++j) scores[j] = nothing;
    for (int j = x.keys.end; j < end; ++j) scores[j] = nothing;
    Vec::F highest = Vec::set1(x.top[h]);
    for (int j = begin; j < end; j += Vec::kLanes)
      highest = Vec::max(highest, Vec::load(scores + j));
    const float top = Vec::reduce_max(highest);
    x.factors[h] = lowered(x.top[h], top);
    x.top[h] = top;
  }
  for_each_vector(static_cast<int>(x.heads), [&](int h, auto lanes) {
    using F32 = Element<DType::f32>;
    store_lanes<F32>(x.factors + h, exp_nonpositive(load_lanes<F32>(x.factors + h, lanes)), lanes);
  });
  for (int64_t h = 0; h < x.heads; ++h) {
    float* scores = x.scores + h * kKeyBlock;
    // All scores -infinity: exp(score - 0) is 0, where exp(score - top) would be NaN.
    const Vec::F shift = Vec::set1(x.top[h] == nothing ? 0.0f : x.top[h]);
    Vec::F added = Vec::zero();
    for (int j = begin; j < end; j += Vec::kLanes) {
      Vec::F weight = exp_nonpositive(Vec::sub(Vec::load(scores + j), shift));
      added = Vec::add(added, weight);
      if constexpr (kScaled) weight = Vec::mul(weight, Vec::load(x.v_scales + j));
      Vec::store(scores + j, weight);
    }
    x.sum[h] = x.sum[h] * x.factors[h] + Vec::reduce_add(added);
  }
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
  // Packed panels are multiplied at once, while they lie in the first-level cache.
  const int end_panel = (keys.end + kPanel - 1) / kPanel;
  const int key_panels = tile_panels(args.heads());
  for (int panel = keys.begin / kPanel; panel < end_panel; panel += key_panels) {
    const int panels = std::min(key_panels, end_panel - panel);
    pack_keys<E>(static_cast<const T*>(args.k_cache), places + panel * kPanel, panels, head_dim,
                 work.k);
    multiply({work.q, head_dim, work.k, key_stride(head_dim), head_dim, nullptr,
              work.scores + panel * kPanel, kKeyBlock},
             args.heads(), panels);
  }
  // Rows that see the same keys of the block go together: no weight meets a value that its query
  // does not see, which may be NaN.
  const auto for_equal_rows = [&](auto&& body) {
    for (int row = 0; row < args.tile.rows;) {
      const KeyRange seen = visible_keys(args, args.tile.position + row, first);
      int next = row + 1;
      while (next < args.tile.rows && visible_keys(args, args.tile.position + next, first) == seen)
        ++next;
      if (seen.begin < seen.end)
        body(static_cast<int64_t>(row) * group, static_cast<int64_t>(next - row) * group, seen);
      row = next;
    }
  };
  for_equal_rows([&](int64_t head, int64_t heads, KeyRange seen) {
    absorb_scores<kHasScale<E>>({work.scores + head * kKeyBlock, heads, seen, k_scales, v_scales,
                                 sums.top + head, sums.sum + head, work.factors + head});
  });
  const int value_panels = (head_dim + kPanel - 1) / kPanel;
  for (int panel = 0; panel < value_panels; panel += kValuePanels) {
    const int panels = std::min(kValuePanels, value_panels - panel);
    pack_values<E>(static_cast<const T*>(args.v_cache), places, keys, panel, panel + panels,
                   head_dim, work.v);
    for_equal_rows([&](int64_t head, int64_t heads, KeyRange seen) {
      multiply({work.scores + head * kKeyBlock + seen.begin, kKeyBlock,
                work.v + seen.begin * kPanel, kValueStride, seen.end - seen.begin,
                work.factors + head, sums.acc + head * head_pad + panel * kPanel, head_pad},
               heads, panels);
    });
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
