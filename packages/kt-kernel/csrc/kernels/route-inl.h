// SPDX-License-Identifier: Apache-2.0
// Router: the top_k experts of a row and their weights, by any Router of kernels.h. Textual,
// included inside a target's namespace.

// Collects the k largest values offered by index, best first; of equal ones, those offered first.
struct TopK {
  const float* values;
  int k;
  int32_t* ids;
  int count = 0;

  void offer(int32_t i) {
    if (count == k && !(values[i] > values[ids[k - 1]])) return;
    int at = count < k ? count++ : k - 1;
    for (; at > 0 && values[i] > values[ids[at - 1]]; --at) ids[at] = ids[at - 1];
    ids[at] = i;
  }
};

// log(1 + e^x) = max(x, 0) + log1p(u) with u = e^-|x|, and log1p(u) = 2 atanh(u / (2 + u)). The
// argument of atanh is at most 1/3, where the first term left out is 1.4e-8 of the sum.
inline Vec::F softplus(Vec::F x) {
  const Vec::F u = exp(Vec::neg(Vec::abs(x)));
  const Vec::F s = Vec::div(u, Vec::add(u, Vec::set1(2.0f)));
  const Vec::F z = Vec::mul(s, s);
  Vec::F p = Vec::set1(1.0f / 13);
  p = Vec::fma(p, z, Vec::set1(1.0f / 11));
  p = Vec::fma(p, z, Vec::set1(1.0f / 9));
  p = Vec::fma(p, z, Vec::set1(1.0f / 7));
  p = Vec::fma(p, z, Vec::set1(1.0f / 5));
  p = Vec::fma(p, z, Vec::set1(1.0f / 3));
  p = Vec::fma(p, z, Vec::set1(1.0f));
  return Vec::fma(Vec::add(s, s), p, Vec::max(Vec::zero(), x));
}

// out[i] = f(x[i]) over whole vectors; returns the vector of their sums.
template <class F>
inline Vec::F map_row(const float* x, int n, float* out, F&& f) {
  Vec::F sum = Vec::zero();
  for (int i = 0; i < n; i += Vec::kLanes) {
    const Vec::F y = f(Vec::load(x + i));
    Vec::store(out + i, y);
    sum = Vec::add(sum, y);
  }
  return sum;
}

// The scores of n logits, followed up to whole vectors by logits of -infinity, whose score is 0.
inline void score_row(const float* logit, int n, Score kind, float* score) {
  const Vec::F one = Vec::set1(1.0f);
  switch (kind) {
    case Score::softmax: {
      Vec::F top = Vec::load(logit);
      for (int i = Vec::kLanes; i < n; i += Vec::kLanes) top = Vec::max(top, Vec::load(logit + i));
      const Vec::F shift = Vec::set1(Vec::reduce_max(top));
      const Vec::F sum =
          map_row(logit, n, score, [&](Vec::F x) { return exp(Vec::sub(x, shift)); });
      const Vec::F total = Vec::set1(Vec::reduce_add(sum));
      map_row(score, n, score, [&](Vec::F x) { return Vec::div(x, total); });
      return;
    }
    case Score::sigmoid:
      map_row(logit, n, score,
              [&](Vec::F x) { return Vec::div(one, Vec::add(one, exp(Vec::neg(x)))); });
      return;
    case Score::sqrtsoftplus:
      map_row(logit, n, score, [](Vec::F x) { return Vec::sqrt(softplus(x)); });
      return;
    case Score::sparsemixer:
      return;  // of a slot, not of an expert: sparsemixer_weight
  }
}

// Softmax of the logit chosen for `slot`, over the experts that no earlier slot took and whose
// logit is near: at most 2 * jitter_eps below it, relative to the larger magnitude
// (https://arxiv.org/abs/2409.12136, as at inference).
inline float sparsemixer_weight(const RouteArgs& args, const float* logit, const int32_t* ids,
                                int slot) {
  float share[kMaxRoutedExperts];
  const float top = logit[ids[slot]];
  map_row(logit, args.num_experts, share,
          [&](Vec::F x) { return exp(Vec::sub(x, Vec::set1(top))); });
  for (int s = 0; s < slot; ++s) share[ids[s]] = 0.0f;
  float sum = 0.0f;
  for (int e = 0; e < args.num_experts; ++e) {
    const float magnitude = logit[e] < 0 ? -logit[e] : logit[e];
    const float distance = (top - logit[e]) / (magnitude > top ? magnitude : top);
    // Not "<=": 0 / 0 is near, too.
    if (!(distance > 2 * args.router.jitter_eps)) sum += share[e];
  }
  return 1.0f / sum;
}

// The top_k largest values within the best groups.
inline void select_experts(const RouteArgs& args, const float* value, int32_t* ids) {
  const Router& router = args.router;
  const int size = args.num_experts / router.num_groups;
  float group_value[kMaxRoutedExperts];
  int32_t groups[kMaxRoutedExperts];
  TopK best_groups{group_value, router.topk_groups, groups};
  bool open[kMaxRoutedExperts] = {};
  for (int g = 0; g < router.num_groups && router.topk_groups < router.num_groups; ++g) {
    const float lowest = -std::numeric_limits<float>::infinity();
    float first = lowest, second = lowest;
    for (const float* v = value + g * size; v < value + (g + 1) * size; ++v) {
      const float low = *v < first ? *v : first;
      first = *v > first ? *v : first;
      second = low > second ? low : second;
    }
    const bool pair = router.group_score == GroupScore::top2_sum && size > 1;
    group_value[g] = pair ? first + second : first;
    best_groups.offer(g);
  }
  for (int i = 0; i < best_groups.count; ++i) open[groups[i]] = true;
  TopK best{value, args.top_k, ids};
  for (int g = 0; g < router.num_groups; ++g) {
    if (best_groups.count > 0 && !open[g]) continue;
    for (int e = g * size; e < (g + 1) * size; ++e) best.offer(e);
  }
}

// The experts that the table names for the row's token; false if it names none.
inline bool look_up_experts(const RouteArgs& args, int64_t row, int32_t* ids) {
  const int64_t token = args.input_ids[row];
  if (token < 0 || token >= args.vocab_size) return false;
  std::memcpy(ids, args.hash_table + token * args.top_k, sizeof(int32_t) * args.top_k);
  for (int s = 0; s < args.top_k; ++s)
    if (ids[s] < 0 || ids[s] >= args.num_experts) return false;
  return true;
}

inline void normalize_weights(const Router& router, float* weights, int top_k) {
  float sum = 0.0f;
  for (int s = 0; s < top_k; ++s) sum += weights[s];
  float divisor = 1.0f;
  if (router.norm == Norm::sum) divisor = sum + router.norm_eps;
  if (router.norm == Norm::clamp) divisor = router.norm_eps > sum ? router.norm_eps : sum;
  // In this order, because scale / divisor may overflow where the weights are small.
  for (int s = 0; s < top_k; ++s) weights[s] = weights[s] / divisor * router.scale;
}

inline void route(const RouteArgs& args) {
  const Router& router = args.router;
  const int n = args.num_experts;
  const int padded = (n + Vec::kLanes - 1) / Vec::kLanes * Vec::kLanes;
  float logit[kMaxRoutedExperts], score[kMaxRoutedExperts], biased[kMaxRoutedExperts];
  int32_t ids[kMaxRoutedExperts];
  float weights[kMaxRoutedExperts];
  for (int64_t row = args.rows.begin; row < args.rows.end; ++row) {
    std::memcpy(logit, args.logits + row * n, sizeof(float) * n);
    for (int e = n; e < padded; ++e) logit[e] = -std::numeric_limits<float>::infinity();
    score_row(logit, n, router.score, score);
    const float* value = router.select_on == SelectOn::logit ? logit : score;
    bool broken = false;
    for (int e = 0; e < n; ++e) broken |= value[e] != value[e];
    if (args.bias != nullptr) {
      for (int e = 0; e < n; ++e) {
        biased[e] = value[e] + args.bias[e];
        broken |= biased[e] != biased[e];
      }
      value = biased;
    }
    if (router.select_on == SelectOn::hash)
      broken |= !look_up_experts(args, row, ids);
    else if (!broken)
      select_experts(args, value, ids);
    if (broken) {  // comparisons with NaN choose nothing sensible: spoil this row visibly, and no
                   // other
      for (int s = 0; s < args.top_k; ++s) ids[s] = s;
      fill_nan(weights, args.top_k);
    } else {
      for (int s = 0; s < args.top_k; ++s)
        weights[s] = router.score == Score::sparsemixer ? sparsemixer_weight(args, logit, ids, s)
                                                        : score[ids[s]];
      normalize_weights(router, weights, args.top_k);
    }
    std::memcpy(args.topk_ids + row * args.top_k, ids, sizeof(int32_t) * args.top_k);
    std::memcpy(args.topk_weights + row * args.top_k, weights, sizeof(float) * args.top_k);
  }
}
