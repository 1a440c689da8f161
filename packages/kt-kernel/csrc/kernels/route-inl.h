// SPDX-License-Identifier: Apache-2.0
// Router: the top_k experts of a row and their weights, with the group limit and correction bias of
// DeepSeek-V3 (https://arxiv.org/abs/2412.19437, section 2.1.2). Textual, included inside a
// target's namespace.

// Index of the largest value not taken yet (ties: the lowest), which is then taken.
inline int take_largest(const float* values, int n, uint8_t* taken) {
  int best = -1;
  for (int i = 0; i < n; ++i)
    if (taken[i] == 0 && (best < 0 || values[i] > values[best])) best = i;
  taken[best] = 1;
  return best;
}

// probability[0, n) from logits. probability has room for whole vectors; its pads become 0.
inline void score_row(const float* logits, int n, Score score, float* probability) {
  using E = Element<DType::f32>;
  const bool softmax = score == Score::softmax;
  float top = -std::numeric_limits<float>::infinity();
  for (int e = 0; softmax && e < n; ++e) top = logits[e] > top ? logits[e] : top;
  Vec::F sum = Vec::zero();
  for_each_vector(n, [&](int e, auto lanes) {
    const Vec::F x = load_lanes<E>(logits + e, lanes);
    const Vec::F one = Vec::set1(1.0f);
    const Vec::F p =
        softmax ? exp(Vec::sub(x, Vec::set1(top))) : Vec::div(one, Vec::add(one, exp(Vec::neg(x))));
    Vec::store(probability + e, Vec::zero());
    store_lanes<E>(probability + e, p, lanes);
    sum = Vec::add(sum, Vec::load(probability + e));
  });
  if (!softmax) return;
  const Vec::F total = Vec::set1(Vec::reduce_add(sum));
  for (int e = 0; e < n; e += Vec::kLanes)
    Vec::store(probability + e, Vec::div(Vec::load(probability + e), total));
}

// Marks as taken every expert outside the topk_groups groups whose two best selection values sum
// highest.
inline void limit_groups(const RouteArgs& args, const float* selection, uint8_t* taken) {
  const int group_size = args.num_experts / args.num_groups;
  float group_score[kMaxRoutedExperts];
  uint8_t group_taken[kMaxRoutedExperts] = {};
  for (int g = 0; g < args.num_groups; ++g) {
    const float* values = selection + g * group_size;
    const float lowest = -std::numeric_limits<float>::infinity();
    float first = lowest, second = lowest;
    for (int i = 0; i < group_size; ++i) {
      const float low = values[i] < first ? values[i] : first;
      first = values[i] > first ? values[i] : first;
      second = low > second ? low : second;
    }
    group_score[g] = group_size == 1 ? first : first + second;
  }
  for (int g = 0; g < args.topk_groups; ++g)
    take_largest(group_score, args.num_groups, group_taken);
  for (int e = 0; e < args.num_experts; ++e) taken[e] = group_taken[e / group_size] == 0;
}

inline void route(const RouteArgs& args) {
  const int n = args.num_experts;
  float probability[kMaxRoutedExperts];
  float selection[kMaxRoutedExperts];
  uint8_t taken[kMaxRoutedExperts];
  for (int64_t row = args.rows.begin; row < args.rows.end; ++row) {
    int32_t* ids = args.topk_ids + row * args.top_k;
    float* weights = args.topk_weights + row * args.top_k;
    score_row(args.logits + row * n, n, args.score, probability);
    bool broken = false;
    for (int e = 0; e < n; ++e) {
      selection[e] = args.bias == nullptr ? probability[e] : probability[e] + args.bias[e];
      broken = broken || selection[e] != selection[e];
      taken[e] = 0;
    }
    if (broken) {  // comparisons with NaN choose nothing sensible: spoil this row visibly, and no
                   // other
      for (int s = 0; s < args.top_k; ++s) ids[s] = s;
      fill_nan(weights, args.top_k);
      continue;
    }
    if (args.num_groups > 1) limit_groups(args, selection, taken);
    float sum = 0.0f;
    for (int s = 0; s < args.top_k; ++s) {
      ids[s] = take_largest(selection, n, taken);
      weights[s] = probability[ids[s]];
      sum += weights[s];
    }
    // 1e-20 as in the published router: it keeps a row of all-zero probabilities at 0 instead of
    // NaN.
    const float factor = args.normalize ? args.scale / (sum + 1e-20f) : args.scale;
    for (int s = 0; s < args.top_k; ++s) weights[s] *= factor;
  }
}
