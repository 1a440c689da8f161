// SPDX-License-Identifier: Apache-2.0
// The kernels that know no weight format, on small ragged shapes.
#include <algorithm>

#include "cases.h"

namespace kt::selftest {
namespace {

constexpr int kTokens = 5, kHidden = 83;
constexpr float kUnwritten = -7.25f;

const struct {
  DType dtype;
  const char* name;
} kDTypes[] = {{DType::f32, "f32"}, {DType::bf16, "bf16"}, {DType::f16, "f16"}};

void run_activations(const Kernels& table, const Report& report) {
  const struct {
    Activation activation;
    const char* name;
  } cases[] = {
      {{ActivationKind::silu}, "silu"},
      {{ActivationKind::silu_clamped, 2.5f}, "silu_clamped"},
      {{ActivationKind::silu_post_clamped, 2.5f}, "silu_post_clamped"},
      {{ActivationKind::swigluoai, 7.0f, 1.702f}, "swigluoai"},
      {{ActivationKind::gelu}, "gelu"},
      {{ActivationKind::relu2}, "relu2"},
  };
  Random random(1);
  std::vector<float> gate = random.reals(kTokens * kHidden), up = random.reals(gate.size());
  for (float& x : gate) x *= 9;  // far enough out for the limits and the flat ends
  for (const auto& [activation, name] : cases) {
    std::vector<float> out(gate.size(), kUnwritten);
    table.activate({activation.gated() ? gate.data() : nullptr,
                    up.data(),
                    out.data(),
                    kHidden,
                    activation,
                    {0, kTokens},
                    {0, kHidden}});
    report("activate", name, hash_of(out));
  }
}

void run_embedding(const Kernels& table, const Report& report) {
  constexpr int kRows = 4, kColumns = 256;  // whole blocks of all formats
  Random random(9);
  // Bits of any number, NaN and infinity among them.
  std::vector<uint64_t> weight(kRows * kColumns * sizeof(float) / sizeof(uint64_t));
  for (uint64_t& word : weight) word = random.next();
  const int32_t ids[kTokens] = {3, 0, -1, 2, 2};
  for (int f = 0; f < kNumFormats; ++f) {
    const auto format = static_cast<Format>(f);
    if (!info(format).self_scaled()) continue;
    std::vector<float> out(kTokens * kColumns, kUnwritten);
    table.embedding({ids, weight.data(), format, kRows, kColumns, out.data(), {0, kTokens}});
    report("embedding", info(format).name, hash_of(out));
  }
}

void run_rows(const Kernels& table, const Report& report) {
  Random random(2);
  const std::vector<float> x = random.reals(kTokens * kHidden), y = random.reals(x.size());
  std::vector<float> out(x.size(), kUnwritten);
  table.add({x.data(), y.data(), out.data(), {0, kTokens * kHidden}});
  report("add", "-", hash_of(out));
  table.rms_norm({x.data(), y.data(), out.data(), kHidden, 1e-6f, {0, kTokens}});
  report("rms_norm", "-", hash_of(out));

  constexpr int kTopK = 2, kStride = 96;
  const std::vector<float> rows = random.reals(kTokens * kTopK * kStride);
  const std::vector<float> weights = random.reals(kTokens * kTopK);
  const int32_t slots[kTokens * kTopK] = {0, 1, 9, -1, 4, 4, -1, -1, 7, 2};
  for (const auto& [dtype, name] : kDTypes) {
    std::vector<float> sum(kTokens * kHidden);
    table.combine({rows.data(),
                   kStride,
                   slots,
                   weights.data(),
                   kTopK,
                   kHidden,
                   sum.data(),
                   dtype,
                   false,
                   {0, kTokens}});
    Hash hash;
    hash.add(static_cast<const void*>(sum.data()),
             kTokens * kHidden * (dtype == DType::f32 ? 4 : 2));
    report("combine", name, hash.value());
  }
}

void run_route(const Kernels& table, const Report& report) {
  constexpr int kExperts = 64, kTopK = 6, kVocab = 7;
  const struct {
    Router router;
    const char* name;
  } cases[] = {
      {{Score::softmax, SelectOn::score, 1, 1, GroupScore::top2_sum, Norm::sum, 1e-20f, 1, 0},
       "softmax"},
      {{Score::sigmoid, SelectOn::score, 8, 4, GroupScore::top2_sum, Norm::sum, 1e-20f, 2.5f, 0},
       "sigmoid"},
      {{Score::softmax, SelectOn::logit, 8, 3, GroupScore::max, Norm::none, 0, 1, 0}, "logit"},
      {{Score::sqrtsoftplus, SelectOn::hash, 1, 1, GroupScore::max, Norm::clamp, 1e-12f, 1, 0},
       "hash"},
      {{Score::sparsemixer, SelectOn::logit, 1, 1, GroupScore::max, Norm::none, 0, 1, 0.01f},
       "sparsemixer"},
  };
  Random random(3);
  std::vector<float> logits = random.reals(kTokens * kExperts), bias = random.reals(kExperts);
  for (float& x : logits) x *= 6;
  std::vector<int32_t> input_ids(kTokens), experts(kVocab * kTopK);
  for (int32_t& id : input_ids) id = random.below(kVocab);
  for (int32_t& id : experts) id = random.below(kExperts);
  for (const auto& [router, name] : cases) {
    std::vector<int32_t> ids(kTokens * kTopK);
    std::vector<float> weights(ids.size());
    const bool hashed = router.select_on == SelectOn::hash;
    table.route({logits.data(),
                 hashed ? nullptr : bias.data(),
                 input_ids.data(),
                 experts.data(),
                 kVocab,
                 router,
                 kExperts,
                 kTopK,
                 ids.data(),
                 weights.data(),
                 {0, kTokens}});
    Hash hash;
    hash.add(static_cast<const void*>(ids.data()), ids.size() * sizeof(int32_t));
    report("route_ids", name, hash.value());
    report("route_weights", name, hash_of(weights));
  }
}

// int8 caches round to the same bytes everywhere; what attention makes of them is float again.
const struct {
  KvDType dtype;
  const char* name;
  int bytes;
} kKvDTypes[] = {{KvDType::f32, "f32", 4},
                 {KvDType::bf16, "bf16", 2},
                 {KvDType::f16, "f16", 2},
                 {KvDType::int8, "int8", 1}};

// One sequence in pages, written by rope_write_kv and read by attention: at once, and in splits
// that are merged.
void run_attention(const Kernels& table, const Report& report) {
  constexpr int kHeads = 4, kKvHeads = 2, kHeadDim = 20, kRotaryDim = 12, kPageSize = 16;
  constexpr int kQueries = 3, kSplits = 3, kKeys = (kSplits - 1) * kSplitKeys + 77;
  constexpr int kPages = (kKeys + kPageSize - 1) / kPageSize, kSlots = kPages * kPageSize;
  Random random(4);
  const std::vector<float> k = random.reals(kKeys * kKvHeads * kHeadDim),
                           v = random.reals(k.size());
  const std::vector<float> cos = random.reals(kKeys * kRotaryDim / 2);
  const std::vector<float> sin = random.reals(cos.size()), sinks = random.reals(kHeads);
  const std::vector<float> queries = random.reals(kKeys * kHeads * kHeadDim);
  std::vector<int32_t> positions(kKeys), slots(kKeys), pages(kPages);
  for (int page = 0; page < kPages; ++page) pages[page] = kPages - 1 - page;
  for (int i = 0; i < kKeys; ++i) {
    positions[i] = i;
    slots[i] = pages[i / kPageSize] * kPageSize + i % kPageSize;
  }
  for (const auto& [dtype, name, bytes] : kKvDTypes) {
    std::vector<float> q = queries;
    std::vector<uint8_t> k_cache(kSlots * kKvHeads * kHeadDim * bytes), v_cache(k_cache.size());
    std::vector<float> k_scales(kSlots * kKvHeads), v_scales(k_scales.size());
    RopeWriteKvArgs rope{};
    rope.q = q.data();
    rope.k = k.data();
    rope.v = v.data();
    rope.cos = cos.data();
    rope.sin = sin.data();
    rope.positions = positions.data();
    rope.slot_mapping = slots.data();
    rope.k_cache = k_cache.data();
    rope.v_cache = v_cache.data();
    rope.k_scales = k_scales.data();
    rope.v_scales = v_scales.data();
    rope.kv_dtype = dtype;
    rope.num_heads = kHeads;
    rope.num_kv_heads = kKvHeads;
    rope.head_dim = kHeadDim;
    rope.rotary_dim = kRotaryDim;
    rope.num_slots = kSlots;
    rope.max_positions = kKeys;
    rope.tokens = {0, kKeys};
    table.rope_write_kv(rope);
    Hash hash;
    hash.add(q);
    hash.add(static_cast<const void*>(k_cache.data()), k_cache.size());
    hash.add(static_cast<const void*>(v_cache.data()), v_cache.size());
    report("rope_write_kv", name, hash.value());

    const int32_t seq_len = kKeys, starts[] = {0, kQueries};
    std::vector<float> out(kQueries * kHeads * kHeadDim, kUnwritten);
    AttentionArgs args{};
    args.q = queries.data();
    args.k_cache = k_cache.data();
    args.v_cache = v_cache.data();
    args.k_scales = k_scales.data();
    args.v_scales = v_scales.data();
    args.kv_dtype = dtype;
    args.sinks = sinks.data();
    args.block_table = pages.data();
    args.seq_lens = &seq_len;
    args.cu_seqlens_q = starts;
    args.num_seqs = 1;
    args.max_pages = kPages;
    args.page_size = kPageSize;
    args.num_pages = kPages;
    args.num_heads = kHeads;
    args.num_kv_heads = kKvHeads;
    args.head_dim = kHeadDim;
    args.window = 700;
    args.scale = 0.25f;
    args.out = out.data();
    args.tile = {0, kQueries, 0, kKeys - kQueries};
    const int64_t heads = args.heads(), sums = attention_sums_floats(heads, args.head_pad());
    std::vector<float> work(attention_work_floats(args, heads)), partials(kSplits * sums);
    args.work = attention_work(args, heads, work.data());
    for (args.kv_head = 0; args.kv_head < kKvHeads; ++args.kv_head) {
      args.first_split = 0;
      args.end_split = kSplits;
      table.attention(args);
    }
    report("attention", name, hash_of(out));
    std::fill(out.begin(), out.end(), kUnwritten);
    for (args.kv_head = 0; args.kv_head < kKvHeads; ++args.kv_head) {
      for (int s = 0; s < kSplits; ++s) {
        args.first_split = s;
        args.end_split = s + 1;
        args.partials = partials.data() + s * sums;
        table.attention(args);
      }
      args.first_split = 0;
      args.end_split = kSplits;
      args.partials = partials.data();
      table.merge_attention(args);
    }
    report("merge_attention", name, hash_of(out));
  }
}

}  // namespace

void run_ops(const Kernels& table, const Report& report) {
  run_activations(table, report);
  run_rows(table, report);
  run_embedding(table, report);
  run_route(table, report);
  run_attention(table, report);
}

}  // namespace kt::selftest
