// SPDX-License-Identifier: Apache-2.0
// What one unit of attention is: a tile of query rows, one KV head, a run of keys. The kernels are
// in csrc/kernels/attention-inl.h, the partition over workers in csrc/core/attention_plan.cpp.
#pragma once

#include <array>
#include <cstdint>

namespace kt {

// Elements of the KV cache. int8: symmetric, with one float scale per (token, KV head).
enum class KvDType : uint8_t { f32, bf16, f16, int8 };

// The softmax advances by kKeyBlock keys, and its sums are merged every kSplitKeys keys; both start
// at multiples of themselves in the sequence, so that a row's result depends on its position only.
// A block of 128 keys takes 4 to 8 % less time per key than one of 64, whose sums are loaded and
// stored twice as often. 512 keys of one KV head take a core some 50 us, worth handing to another
// worker.
inline constexpr int kKeyBlock = 128;
inline constexpr int kSplitKeys = 512;
// Heads are padded to whole pairs of the widest vectors (16 floats).
inline constexpr int kHeadPad = 32;

// Consecutive query rows of one sequence, computed together: they share each packed block of keys.
struct AttentionTile {
  int32_t sequence;
  int32_t rows;
  int64_t first_row;
  int64_t position;  // of first_row in its sequence
};

// Softmax sums over some keys for each [row of a tile][head of a group]: acc = sum(exp(score - top)
// * v) [heads][head_pad], sum = sum(exp(score - top)) [heads], top [heads] (-infinity: no key).
struct AttentionSums {
  float* acc;
  float* sum;
  float* top;
};

constexpr int64_t attention_sums_floats(int64_t heads, int head_pad) {
  return heads * (head_pad + 2);
}
constexpr AttentionSums attention_sums(float* at, int64_t heads, int head_pad) {
  return {at, at + heads * head_pad, at + heads * (head_pad + 1)};
}

// One worker's memory for a tile.
struct AttentionWork {
  float* q;        // [heads][head_dim], scaled
  float* k;        // some keys of a block, packed: [panel][head_dim + 1][keys of a panel]
  float* v;        // some elements of its values: [panel][kKeyBlock + 1][elements of a panel]
  float* scores;   // [heads][kKeyBlock]
  float* factors;  // [heads]
  AttentionSums split, total;
};

// Causal GQA over paged KV. A query at position p of its sequence sees the keys j with
// p - window < j <= p (window 0: all j <= p).
struct AttentionArgs {
  const float* q;       // [tokens][num_heads][head_dim]
  const void* k_cache;  // [num_pages][page_size][num_kv_heads][head_dim] of kv_dtype
  const void* v_cache;
  const float* k_scales;  // int8 only: [num_pages][page_size][num_kv_heads]
  const float* v_scales;
  KvDType kv_dtype;
  const float* sinks;           // [num_heads] or null: one more score per head, with no value
  const int32_t* block_table;   // [num_seqs][max_pages]
  const int32_t* seq_lens;      // [num_seqs] including the rows of this call
  const int32_t* cu_seqlens_q;  // [num_seqs + 1]
  int num_seqs, max_pages, page_size;
  int64_t num_pages;
  int num_heads, num_kv_heads, head_dim;
  int window;
  float scale;
  float* out;  // [tokens][num_heads][head_dim]

  // The unit. attention sums over the splits [first_split, end_split), split s being the keys
  // s * kSplitKeys and on, and writes out; or, given `partials`, sums one split and leaves its sums
  // there at place s - first_split_of_tile for merge_attention.
  AttentionTile tile;
  int kv_head;
  int first_split, end_split;
  float* partials;  // null, or attention_sums of split first_split
  AttentionWork work;

  int group() const { return num_heads / num_kv_heads; }
  int64_t heads() const { return int64_t{tile.rows} * group(); }
  int head_pad() const { return (head_dim + kHeadPad - 1) / kHeadPad * kHeadPad; }
};

// Sizes of the parts of an AttentionWork in order, in floats, each in whole cache lines.
inline std::array<int64_t, 7> attention_work_parts(const AttentionArgs& args, int64_t heads) {
  const int64_t sums = attention_sums_floats(heads, args.head_pad());
  std::array<int64_t, 7> parts = {heads * args.head_dim,
                                  int64_t{kKeyBlock} * (args.head_dim + 1),
                                  int64_t{kKeyBlock + 1} * args.head_pad(),
                                  heads * kKeyBlock,
                                  heads,
                                  sums,
                                  sums};
  constexpr int64_t kLineFloats = 16;
  for (int64_t& part : parts) part = (part + kLineFloats - 1) / kLineFloats * kLineFloats;
  return parts;
}

inline int64_t attention_work_floats(const AttentionArgs& args, int64_t heads) {
  int64_t floats = 0;
  for (const int64_t part : attention_work_parts(args, heads)) floats += part;
  return floats;
}

// The AttentionWork for tiles of so many heads whose memory begins at `at`.
inline AttentionWork attention_work(const AttentionArgs& args, int64_t heads, float* at) {
  float* part[7];
  int i = 0;
  for (const int64_t size : attention_work_parts(args, heads)) {
    part[i++] = at;
    at += size;
  }
  const int head_pad = args.head_pad();
  return {part[0],
          part[1],
          part[2],
          part[3],
          part[4],
          attention_sums(part[5], heads, head_pad),
          attention_sums(part[6], heads, head_pad)};
}

}  // namespace kt
