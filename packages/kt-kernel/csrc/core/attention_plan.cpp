// SPDX-License-Identifier: Apache-2.0
// Cuts query rows into tiles and, where there are too few of them for the workers, the keys of a
// tile into splits whose sums are merged afterwards.
#include "attention_plan.h"

#include <algorithm>
#include <limits>

#include "kt/check.h"
#include "kt/rounding.h"

namespace kt {
namespace {

// Rows of a tile times heads of a group: packing a block of keys costs about as much as 8 of them.
constexpr int kTileHeads = 128;
// A tile with more than 1 / (this * workers) of all work is split, so that the last one to finish
// keeps nobody waiting for long.
constexpr int64_t kPartsPerWorker = 4;
// Sums of split tiles; tiles that find no room stay whole. 32 heads of 128 over 128k keys are 5
// MiB.
constexpr int64_t kMaxPartialFloats = int64_t{8} << 20;

int64_t max_keys(const AttentionArgs& args) { return int64_t{args.max_pages} * args.page_size; }

}  // namespace

AttentionPlan::AttentionPlan(ThreadPool& pool, const AttentionArgs& args, int64_t rows)
    : args_(args), workers_(pool.num_threads()) {
  const int group = std::max(1, args.group());
  tile_rows_ = std::max<int>(1, std::min<int64_t>(rows, kTileHeads / group));
  if (rows == 0) return;
  const int64_t tile_heads = int64_t{tile_rows_} * group;
  work_floats_ = attention_work_floats(args, tile_heads);
  // Fewer than kPartsPerWorker tiles per worker are split, each over its splits and at most one
  // more where a window begins inside a split.
  int64_t keys = std::min<int64_t>(max_keys(args), std::numeric_limits<int32_t>::max());
  if (args.window > 0) keys = std::min<int64_t>(keys, int64_t{args.window} + tile_rows_);
  const int64_t splits = ceil_div(keys, kSplitKeys) + 1;
  const int64_t heads =
      std::min<int64_t>(rows * args.num_heads, kPartsPerWorker * workers_ * tile_heads);
  const int64_t per_split = attention_sums_floats(heads, args.head_pad());
  partial_floats_ = std::min(per_split, kMaxPartialFloats / splits) * splits;
  memory_ = pool.scratch((work_floats_ * workers_ + partial_floats_) * sizeof(float));
  parts_.reserve(rows);
}

void AttentionPlan::make(int64_t live) {
  parts_.clear();
  if (args_.num_heads > 0 && args_.head_dim > 0) {
    check(live);
    cut_into_tiles(live);
  }
  share_out();
}

void AttentionPlan::check(int64_t live) const {
  const char* op = "attention";
  const int32_t* starts = args_.cu_seqlens_q;
  KT_CHECK(op, starts[0] == 0, "cu_seqlens_q must begin with 0; got ", starts[0]);
  for (int s = 0; s < args_.num_seqs; ++s) {
    KT_CHECK(op, starts[s] <= starts[s + 1], "cu_seqlens_q must not decrease; got ", starts[s],
             " before ", starts[s + 1]);
    const int64_t rows = starts[s + 1] - starts[s];
    if (rows == 0 || starts[s] >= live) continue;  // no row, or only padding
    const int64_t len = args_.seq_lens[s];
    KT_CHECK(op, len >= rows && len <= max_keys(args_), "seq_lens must lie between the ", rows,
             " query rows and the ", max_keys(args_), " keys of the sequence's pages; got ", len);
    const int32_t* pages = args_.block_table + int64_t{s} * args_.max_pages;
    // Pages that fell out of every row's window may be gone.
    const int64_t oldest =
        args_.window > 0 ? std::max<int64_t>(0, len - rows + 1 - args_.window) : 0;
    for (int64_t p = oldest / args_.page_size; p < ceil_div(len, args_.page_size); ++p)
      KT_CHECK(op, pages[p] >= 0 && pages[p] < args_.num_pages, "block_table page must lie in [0, ",
               args_.num_pages, "); got ", pages[p]);
  }
  KT_CHECK(op, starts[args_.num_seqs] >= live, "cu_seqlens_q must cover all ", live, " rows; got ",
           starts[args_.num_seqs]);
}

// From the last row to the first: in a prefill later rows see more keys, and the longest work
// should begin first. Every number is clamped, because a caller may be changing the arrays.
void AttentionPlan::cut_into_tiles(int64_t live) {
  int64_t unclaimed = live;
  for (int s = args_.num_seqs - 1; s >= 0; --s) {
    const int64_t stop = args_.cu_seqlens_q[s + 1];
    const int64_t len = args_.seq_lens[s];
    const int64_t begin = std::clamp<int64_t>(args_.cu_seqlens_q[s], 0, unclaimed);
    for (int64_t end = std::clamp<int64_t>(stop, begin, unclaimed); end > begin;) {
      // Tiles begin at multiples of tile_rows_ in the sequence's rows.
      const int64_t first = begin + (end - 1 - begin) / tile_rows_ * tile_rows_;
      const auto rows = static_cast<int32_t>(end - first);
      int64_t position = len - (stop - first);
      if (position < 0 || position + rows > max_keys(args_)) position = -rows;  // sees no key
      Part part;
      part.tile = {s, rows, first, position};
      const int64_t oldest =
          args_.window > 0 ? std::max<int64_t>(0, position + 1 - args_.window) : 0;
      part.first_split = static_cast<int>(oldest / kSplitKeys);
      part.end_split = static_cast<int>(
          std::max<int64_t>(part.first_split, ceil_div(position + rows, kSplitKeys)));
      parts_.push_back(part);
      end = first;
    }
    unclaimed = begin;
  }
}

void AttentionPlan::share_out() {
  const auto cost = [](const Part& part) {
    return int64_t{part.tile.rows} * (part.end_split - part.first_split);
  };
  int64_t total = 0;
  for (const Part& part : parts_) total += cost(part);
  units_ = merges_ = 0;
  int64_t used = 0;
  for (Part& part : parts_) {
    const int64_t splits = part.end_split - part.first_split;
    const int64_t floats = split_floats(part) * splits * args_.num_kv_heads;
    const bool large = kPartsPerWorker * workers_ * cost(part) > total * args_.num_kv_heads;
    const bool split = splits > 1 && large && used + floats <= partial_floats_;
    part.first_unit = units_;
    part.first_merge = merges_;
    part.partials = split ? used : -1;
    units_ += args_.num_kv_heads * (split ? splits : 1);
    if (!split) continue;
    merges_ += args_.num_kv_heads;
    used += floats;
  }
}

int64_t AttentionPlan::split_floats(const Part& part) const {
  return attention_sums_floats(int64_t{part.tile.rows} * args_.group(), args_.head_pad());
}

AttentionArgs AttentionPlan::args_of(const Part& part, int64_t kv_head, int worker) const {
  AttentionArgs args = args_;
  float* const memory = reinterpret_cast<float*>(memory_->data());
  args.tile = part.tile;
  args.kv_head = static_cast<int>(kv_head);
  args.first_split = part.first_split;
  args.end_split = part.end_split;
  args.partials = nullptr;
  if (part.partials >= 0) {
    const int64_t splits = part.end_split - part.first_split;
    args.partials =
        memory + work_floats_ * workers_ + part.partials + kv_head * splits * split_floats(part);
  }
  args.work =
      attention_work(args, int64_t{tile_rows_} * args.group(), memory + work_floats_ * worker);
  return args;
}

AttentionArgs AttentionPlan::unit(int64_t index, int worker) const {
  const auto after = std::upper_bound(parts_.begin(), parts_.end(), index,
                                      [](int64_t i, const Part& p) { return i < p.first_unit; });
  const Part& part = *(after - 1);
  const int64_t within = index - part.first_unit;
  if (part.partials < 0) return args_of(part, within, worker);
  // KV heads inside: their keys lie side by side, so that a worker reads memory nearly in order.
  AttentionArgs args = args_of(part, within % args_.num_kv_heads, worker);
  const int64_t split = within / args_.num_kv_heads;
  args.partials += split * split_floats(part);
  args.first_split += static_cast<int>(split);
  args.end_split = args.first_split + 1;
  return args;
}

AttentionArgs AttentionPlan::merge(int64_t index, int worker) const {
  // The last part that begins there is a split one: others have no merges.
  const auto after = std::upper_bound(parts_.begin(), parts_.end(), index,
                                      [](int64_t i, const Part& p) { return i < p.first_merge; });
  return args_of(*(after - 1), index - (after - 1)->first_merge, worker);
}

}  // namespace kt
