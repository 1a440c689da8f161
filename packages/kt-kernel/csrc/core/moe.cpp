// SPDX-License-Identifier: Apache-2.0
// Moe: grouping tokens by expert and the order of kernels over them. No arithmetic here.
#include "kt/moe.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <mutex>
#include <utility>

#include "bands.h"
#include "kt/check.h"
#include "kt/dispatch.h"
#include "kt/rounding.h"

namespace kt {
namespace {

constexpr const char* kOp = "moe.forward";
// Rows of one expert that one worker takes at a time: several tiles, so that the band is read from
// memory once for all of them; few enough to share out a call whose tokens all chose one expert.
constexpr int64_t kSpanRows = 4 * kTileRows;
// Rows of an expert whose gate and up fill no more of a workspace in the longest bands than whole
// tiles do in the others.
constexpr int64_t kRowsOfLongBands = kTileRows * kMaxBand / kMaxBandOfOneTile;

// The (token, slot) pairs of one expert: rows [begin, end) of the grouped order.
struct Group {
  int expert;
  Range rows;
  int64_t first_span;  // of all spans, when groups are cut into kSpanRows

  int64_t spans() const { return ceil_div(rows.end - rows.begin, kSpanRows); }
};

// Part `index` of `count` parts that differ by at most one: no small one is left at the end.
Range share(Range all, int64_t index, int64_t count) {
  const int64_t size = all.end - all.begin;
  return {all.begin + size * index / count, all.begin + size * (index + 1) / count};
}

// Carves 64-byte aligned parts out of one buffer; the first pass, from null, only measures.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}
  std::byte* take(size_t bytes) {
    std::byte* const at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (bytes + 63) / 64 * 64;
    return at;
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

}  // namespace

struct Moe::State {
  std::shared_ptr<const Experts> experts;
  Activation activation;
  int top_k, max_tokens;
  ThreadPool* pool;

  std::mutex resident_mutex;
  std::vector<uint8_t> resident;  // empty: none

  // What one worker needs for a tile of rows and a band of panels.
  struct Workspace {
    std::byte *gate_tile, *up_tile;  // gathered rows
    float *gate, *up;                // [rows][outputs of a band]
  };

  std::shared_ptr<const AlignedBuffer> scratch;  // holds everything from here to workspaces
  ActMode gate_mode, up_mode, down_mode;
  int hidden_padded, intermediate_padded;
  std::byte *gate_rows, *up_rows;  // prepared tokens, one row each; the same if the modes are
  std::byte* down_rows;            // prepared pairs, in tiles of kTileRows per group
  int64_t y_stride;
  float* y;                           // [pairs][y_stride]
  int32_t *row_ids, *slot_row;        // token of each pair; pair of each (token, slot), or -1
  std::vector<Workspace> workspaces;  // [worker]
  std::vector<int32_t> offsets;       // [num_experts + 1]
  std::vector<Group> groups;          // experts with work; written by worker 0

  void place(Arena arena, size_t* bytes);
  void group(const MoeCall& call, int64_t rows);
  void prepare(const MoeCall& call, Range rows) const;
  void gate_up(const Workspace& space, const Group& group, Range panels, Range rows) const;
  void down(const Group& group, Range panels, Range rows) const;
  ActTile down_tile(Range rows) const {
    return act_tile(down_mode, static_cast<int>(rows.end - rows.begin), intermediate_padded,
                    down_rows + rows.begin * act_row_bytes(down_mode, intermediate_padded));
  }
  template <class Body>
  void for_each_tile(Worker& worker, int64_t panels, Body body) const;
};

void Moe::State::place(Arena arena, size_t* bytes) {
  const int64_t pairs = int64_t{max_tokens} * top_k;
  const auto mode = [&](Projection p) { return info(experts->format(p)).act_mode; };
  const auto take_rows = [&](ActMode mode, int64_t rows, int k) {
    return arena.take(rows * act_row_bytes(mode, k));
  };
  const auto take_floats = [&](int64_t count) {
    return reinterpret_cast<float*>(arena.take(count * sizeof(float)));
  };
  const auto take_ids = [&] {
    return reinterpret_cast<int32_t*>(arena.take(pairs * sizeof(int32_t)));
  };
  hidden_padded = round_up(experts->hidden_size(), kBlock);
  intermediate_padded = round_up(experts->intermediate_size(), kBlock);
  up_mode = mode(Projection::up);
  gate_mode = experts->gated() ? mode(Projection::gate) : up_mode;
  down_mode = mode(Projection::down);
  y_stride = round_up(experts->hidden_size(), kPanelRows);
  const auto take_pair = [&](int64_t rows, std::byte** gate, std::byte** up) {
    *up = take_rows(up_mode, rows, hidden_padded);
    *gate = gate_mode == up_mode ? *up : take_rows(gate_mode, rows, hidden_padded);
  };
  take_pair(max_tokens, &gate_rows, &up_rows);
  down_rows = take_rows(down_mode, pairs, intermediate_padded);
  y = take_floats(pairs * y_stride);
  row_ids = take_ids();
  slot_row = take_ids();
  for (Workspace& space : workspaces) {
    take_pair(kTileRows, &space.gate_tile, &space.up_tile);
    space.gate = take_floats(kTileRows * kMaxBand * kPanelRows);
    space.up = take_floats(kTileRows * kMaxBand * kPanelRows);
  }
  *bytes = arena.used();
}

// Counting sort of the (token, slot) pairs by expert; within an expert, tokens ascend.
void Moe::State::group(const MoeCall& call, int64_t rows) {
  const int num_experts = experts->num_experts();
  // Each id is read once, into slot_row: the caller's array may change while this runs.
  for (int64_t i = 0; i < rows * top_k; ++i) {
    slot_row[i] = call.topk_ids[i];
    KT_CHECK(kOp, slot_row[i] >= -1 && slot_row[i] < num_experts, "topk_ids must lie in [-1, ",
             num_experts, "); got ", slot_row[i], " at row ", i / top_k, ", slot ", i % top_k);
  }
  const std::lock_guard lock(resident_mutex);
  const auto works = [&](int32_t expert) {
    return expert >= 0 && (resident.empty() || !resident[expert]);
  };
  std::fill(offsets.begin(), offsets.end(), 0);
  for (int64_t i = 0; i < rows * top_k; ++i)
    if (works(slot_row[i])) ++offsets[slot_row[i] + 1];
  groups.clear();
  const auto add_group = [&](int expert, Range pairs) {
    const int64_t spans = groups.empty() ? 0 : groups.back().first_span + groups.back().spans();
    groups.push_back({expert, pairs, spans});
  };
  for (int expert = 0; expert < num_experts; ++expert) {
    offsets[expert + 1] += offsets[expert];
    if (offsets[expert + 1] > offsets[expert])
      add_group(expert, {offsets[expert], offsets[expert + 1]});
  }
  for (int64_t i = 0; i < rows * top_k; ++i) {
    const int32_t expert = slot_row[i];
    slot_row[i] = works(expert) ? offsets[expert]++ : -1;
    if (slot_row[i] >= 0) row_ids[slot_row[i]] = static_cast<int32_t>(i / top_k);
  }
}

// body(group, panels, rows) for every expert with work, every band of its panels and every tile of
// its rows. Experts and bands ascend, so that workers stream neighbouring weights; the spans of one
// band follow each other, so that it is still cached.
template <class Body>
void Moe::State::for_each_tile(Worker& worker, int64_t panels, Body body) const {
  if (groups.empty()) return;
  const int64_t spans = groups.back().first_span + groups.back().spans();
  const bool few = std::all_of(groups.begin(), groups.end(), [](const Group& group) {
    return group.rows.end - group.rows.begin <= kRowsOfLongBands;
  });
  const int64_t most =
      band_panels(panels * spans, worker.num_workers(), few ? kMaxBandOfOneTile : kMaxBand);
  const int64_t band = even_band(panels, most);
  const int64_t bands = ceil_div(panels, band);
  worker.parallel_for(spans * bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const auto after = std::upper_bound(
          groups.begin(), groups.end(), unit,
          [&](int64_t at, const Group& group) { return at < group.first_span * bands; });
      const Group& group = *std::prev(after);
      const int64_t within = unit - group.first_span * bands, count = group.spans();
      const int64_t panel = within / count * band;
      const Range span = share(group.rows, within % count, count);
      const int64_t tiles = ceil_div(span.end - span.begin, kTileRows);
      for (int64_t tile = 0; tile < tiles; ++tile)
        body(group, Range{panel, std::min(panel + band, panels)}, share(span, tile, tiles));
    }
  });
}

void Moe::State::prepare(const MoeCall& call, Range rows) const {
  const Kernels& table = kernels();
  const int hidden = experts->hidden_size();
  const size_t element_bytes = call.dtype == DType::f32 ? 4 : 2;
  const auto prepare_one = [&](int64_t row, ActMode mode, std::byte* to) {
    const auto* x = static_cast<const std::byte*>(call.hidden) + row * hidden * element_bytes;
    const ActTile tile =
        act_tile(mode, 1, hidden_padded, to + row * act_row_bytes(mode, hidden_padded));
    table.prepare_rows({x, call.dtype, hidden, hidden, tile, {0, 1}, {0, hidden_padded / kBlock}});
  };
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    prepare_one(row, up_mode, up_rows);
    if (gate_rows != up_rows) prepare_one(row, gate_mode, gate_rows);
  }
}

// One tile through gate, up and the activation, and on into the rows of the down projection: what
// lies between never leaves the worker's cache.
void Moe::State::gate_up(const Workspace& space, const Group& group, Range panels,
                         Range rows) const {
  const Kernels& table = kernels();
  const int count = static_cast<int>(rows.end - rows.begin);
  const int64_t width = (panels.end - panels.begin) * kPanelRows;
  const auto tile_of = [&](ActMode mode, std::byte* prepared, std::byte* gathered) {
    GatherRowsArgs args{prepared, row_ids + rows.begin,
                        act_tile(mode, count, hidden_padded, gathered)};
    if (count == 1) return args.row_of(args.ids[0]);
    table.gather_rows(args);
    return args.out;
  };
  const auto multiply = [&](Projection p, const ActTile& tile, float* to) {
    const PackedMatrix b = experts->matrix(group.expert, p);
    table.gemm[static_cast<int>(b.format)](
        {tile, b, experts->bias(group.expert, p), to, width, false, panels});
  };
  const ActTile up_tile = tile_of(up_mode, up_rows, space.up_tile);
  if (experts->gated()) {
    const bool shared = gate_rows == up_rows;
    multiply(Projection::gate, shared ? up_tile : tile_of(gate_mode, gate_rows, space.gate_tile),
             space.gate);
  }
  multiply(Projection::up, up_tile, space.up);

  const int64_t first = panels.begin * kPanelRows;
  const int64_t columns =
      std::min<int64_t>(panels.end * kPanelRows, experts->intermediate_size()) - first;
  table.activate({experts->gated() ? space.gate : nullptr,
                  space.up,
                  space.up,
                  width,
                  activation,
                  {0, count},
                  {0, columns}});
  const Range blocks{first / kBlock, std::min<int64_t>(ceil_div(panels.end * kPanelRows, kBlock),
                                                       intermediate_padded / kBlock)};
  table.prepare_rows({space.up, DType::f32, width, columns, down_tile(rows), {0, count}, blocks});
}

void Moe::State::down(const Group& group, Range panels, Range rows) const {
  const PackedMatrix b = experts->matrix(group.expert, Projection::down);
  kernels().gemm[static_cast<int>(b.format)](
      {down_tile(rows), b, experts->bias(group.expert, Projection::down),
       y + rows.begin * y_stride + panels.begin * kPanelRows, y_stride, false, panels});
}

Moe::Moe(std::shared_ptr<const Experts> experts, Activation activation, int top_k, int max_tokens,
         ThreadPool& pool)
    : state_(new State) {
  KT_CHECK("moe", experts != nullptr && experts->complete(),
           "every projection of every expert must be put before; got incomplete experts");
  KT_CHECK("moe", experts->gated() == activation.gated(),
           "experts must have a gate projection exactly if the activation uses one; got experts ",
           experts->gated() ? "with" : "without", " one");
  KT_CHECK("moe", top_k > 0 && max_tokens > 0, "top_k and max_tokens must be positive; got ", top_k,
           ", ", max_tokens);
  KT_CHECK("moe", int64_t{max_tokens} * top_k <= std::numeric_limits<int32_t>::max(),
           "max_tokens * top_k must lie below 2^31; got ", max_tokens, " * ", top_k);
  State& state = *state_;
  state.experts = std::move(experts);
  state.activation = activation;
  state.top_k = top_k;
  state.max_tokens = max_tokens;
  state.pool = &pool;
  state.offsets.resize(state.experts->num_experts() + 1);
  state.groups.reserve(state.experts->num_experts());
  state.workspaces.resize(pool.num_threads());
  size_t bytes = 0;
  state.place(Arena(nullptr), &bytes);
  state.scratch = pool.scratch(bytes);
  state.place(Arena(state.scratch->data()), &bytes);
}

Moe::~Moe() = default;

void Moe::run(Worker& worker, const MoeCall& call, int64_t live_rows) {
  State& s = *state_;
  KT_CHECK(kOp, live_rows <= s.max_tokens, "rows must be at most max_tokens = ", s.max_tokens,
           "; got ", live_rows);
  if (worker.id() == 0) s.group(call, live_rows);
  // Meanwhile the others convert the rows. Only scratch is written until the barrier, which nobody
  // passes if the ids were bad.
  worker.parallel_for(live_rows, 1,
                      [&](int64_t begin, int64_t end) { s.prepare(call, {begin, end}); });

  const Experts& experts = *s.experts;
  const auto panels_of = [](int outputs) { return round_up(outputs, kBundleRows) / kPanelRows; };
  const State::Workspace& space = s.workspaces[worker.id()];
  s.for_each_tile(
      worker, panels_of(experts.intermediate_size()),
      [&](const Group& group, Range panels, Range rows) { s.gate_up(space, group, panels, rows); });
  s.for_each_tile(
      worker, panels_of(experts.hidden_size()),
      [&](const Group& group, Range panels, Range rows) { s.down(group, panels, rows); });
  worker.parallel_for(live_rows, 1, [&](int64_t begin, int64_t end) {
    kernels().combine({s.y,
                       s.y_stride,
                       s.slot_row,
                       call.topk_weights,
                       s.top_k,
                       experts.hidden_size(),
                       call.out,
                       call.out_dtype,
                       call.accumulate,
                       {begin, end}});
  });
}

void Moe::set_resident(std::vector<uint8_t> mask) {
  const size_t expected = state_->experts->num_experts();
  KT_CHECK("moe.set_resident", mask.size() == expected, "mask must have length ", expected,
           "; got ", mask.size());
  const std::lock_guard lock(state_->resident_mutex);
  state_->resident = std::move(mask);
}

const Experts& Moe::experts() const { return *state_->experts; }
int Moe::top_k() const { return state_->top_k; }
int Moe::max_tokens() const { return state_->max_tokens; }
ThreadPool& Moe::pool() const { return *state_->pool; }

}  // namespace kt
