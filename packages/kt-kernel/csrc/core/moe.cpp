// SPDX-License-Identifier: Apache-2.0
// Moe: grouping tokens by expert and the order of kernels over them. No arithmetic here.
#include "kt/moe.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <utility>

#include "kt/check.h"
#include "kt/dispatch.h"

namespace kt {
namespace {

constexpr const char* kOp = "moe.forward";
// Work is handed out per expert in chunks of output panels: 16 panels of a typical K are a few
// hundred KiB of weights, long enough (10 us and more) to hide the hand-out, short enough to
// balance a single token's experts.
constexpr int kChunkPanels = 16;

// The (token, slot) pairs of one expert: rows [begin, end) of the grouped order.
struct Group {
  int expert;
  Range rows;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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
  int top_k, max_tokens;
  ThreadPool* pool;

  std::mutex resident_mutex;
  std::vector<uint8_t> resident;  // empty: none

  std::shared_ptr<const AlignedBuffer> scratch;  // holds everything from here to y
  int64_t stride, y_stride;                      // of gate and up, of y: whole panels
  ActRows gate_act, up_act, down_act;
  float *gate, *up, *y;          // [pairs][stride], [pairs][stride], [pairs][y_stride]
  int32_t *row_ids, *slot_row;   // token of each pair; pair of each (token, slot), or -1
  std::vector<int32_t> offsets;  // [num_experts + 1]
  std::vector<Group> groups;     // experts with work; written by worker 0

  void place(Arena arena, size_t* bytes);
  void group(const MoeCall& call, int64_t rows);
  PackedMatrix matrix(const Group& group, Projection p) const {
    return experts->matrix(group.expert, p);
  }
  ActMode mode(Projection p) const { return default_act_mode(experts->format(p)); }
  template <class Body>
  void for_each_unit(Worker& worker, int64_t panels, Body body);
};

void Moe::State::place(Arena arena, size_t* bytes) {
  const int64_t pairs = int64_t{max_tokens} * top_k;
  const int hidden = round_up(experts->hidden_size(), kBlock);
  const int intermediate = round_up(experts->intermediate_size(), kBlock);
  const auto take_act = [&](ActMode mode, int64_t rows, int k) {
    std::byte* const at = arena.take(act_bytes(mode, rows, k));
    return at == nullptr ? ActRows{} : act_rows(mode, rows, k, at);
  };
  const auto take_floats = [&](int64_t count) {
    return reinterpret_cast<float*>(arena.take(count * sizeof(float)));
  };
  const auto take_ids = [&] {
    return reinterpret_cast<int32_t*>(arena.take(pairs * sizeof(int32_t)));
  };
  stride = round_up(experts->intermediate_size(), kPanelRows);
  y_stride = round_up(experts->hidden_size(), kPanelRows);
  gate_act = take_act(mode(Projection::gate), max_tokens, hidden);
  up_act = mode(Projection::up) == mode(Projection::gate)
               ? gate_act
               : take_act(mode(Projection::up), max_tokens, hidden);
  down_act = take_act(mode(Projection::down), pairs, intermediate);
  gate = take_floats(pairs * stride);
  up = take_floats(pairs * stride);
  y = take_floats(pairs * y_stride);
  row_ids = take_ids();
  slot_row = take_ids();
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
  for (int expert = 0; expert < num_experts; ++expert) {
    offsets[expert + 1] += offsets[expert];
    if (offsets[expert + 1] > offsets[expert])
      groups.push_back({expert, {offsets[expert], offsets[expert + 1]}});
  }
  for (int64_t i = 0; i < rows * top_k; ++i) {
    const int32_t expert = slot_row[i];
    slot_row[i] = works(expert) ? offsets[expert]++ : -1;
    if (slot_row[i] >= 0) row_ids[slot_row[i]] = static_cast<int32_t>(i / top_k);
  }
}

// body(group, panels) for every expert with work and every chunk of its panels; experts ascend, so
// that workers stream neighbouring weights.
template <class Body>
void Moe::State::for_each_unit(Worker& worker, int64_t panels, Body body) {
  const int64_t chunks = ceil_div(panels, kChunkPanels);
  const int64_t units = static_cast<int64_t>(groups.size()) * chunks;
  worker.parallel_for(units, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % chunks * kChunkPanels;
      body(groups[unit / chunks], Range{first, std::min(first + kChunkPanels, panels)});
    }
  });
}

Moe::Moe(std::shared_ptr<const Experts> experts, int top_k, int max_tokens, ThreadPool& pool)
    : state_(new State) {
  KT_CHECK("moe", experts != nullptr && experts->complete(),
           "every projection of every expert must be put before; got incomplete experts");
  KT_CHECK("moe", top_k > 0 && max_tokens > 0, "top_k and max_tokens must be positive; got ", top_k,
           ", ", max_tokens);
  KT_CHECK("moe", int64_t{max_tokens} * top_k <= std::numeric_limits<int32_t>::max(),
           "max_tokens * top_k must lie below 2^31; got ", max_tokens, " * ", top_k);
  State& state = *state_;
  state.experts = std::move(experts);
  state.top_k = top_k;
  state.max_tokens = max_tokens;
  state.pool = &pool;
  state.offsets.resize(state.experts->num_experts() + 1);
  state.groups.reserve(state.experts->num_experts());
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
  const Kernels& table = kernels();
  const int hidden = s.experts->hidden_size();
  const int intermediate = s.experts->intermediate_size();
  if (worker.id() == 0) s.group(call, live_rows);

  // Meanwhile the others convert the rows. Only scratch is written until the barrier, which nobody
  // passes if the ids were bad.
  worker.parallel_for(live_rows, 1, [&](int64_t begin, int64_t end) {
    const Range rows{begin, end};
    table.prepare_rows({call.hidden, call.dtype, hidden, hidden, s.gate_act, rows});
    if (s.up_act.data != s.gate_act.data)
      table.prepare_rows({call.hidden, call.dtype, hidden, hidden, s.up_act, rows});
  });

  s.for_each_unit(worker, s.stride / kPanelRows, [&](const Group& group, Range panels) {
    const auto multiply = [&](Projection p, const ActRows& act, float* to) {
      const PackedMatrix b = s.matrix(group, p);
      table.gemm(b.format)({act, s.row_ids, b, nullptr, to, s.stride, false, group.rows, panels});
    };
    multiply(Projection::gate, s.gate_act, s.gate);
    multiply(Projection::up, s.up_act, s.up);
    const Range columns{panels.begin * kPanelRows,
                        std::min<int64_t>(panels.end * kPanelRows, intermediate)};
    table.activate({s.gate, s.up, s.gate, s.stride, {}, group.rows, columns});
  });

  const int64_t pairs = s.groups.empty() ? 0 : s.groups.back().rows.end;
  worker.parallel_for(pairs, 1, [&](int64_t begin, int64_t end) {
    table.prepare_rows({s.gate, DType::f32, s.stride, intermediate, s.down_act, {begin, end}});
  });

  s.for_each_unit(worker, s.y_stride / kPanelRows, [&](const Group& group, Range panels) {
    const PackedMatrix b = s.matrix(group, Projection::down);
    table.gemm(b.format)(
        {s.down_act, nullptr, b, nullptr, s.y, s.y_stride, false, group.rows, panels});
  });

  worker.parallel_for(live_rows, 1, [&](int64_t begin, int64_t end) {
    table.combine({s.y,
                   s.y_stride,
                   s.slot_row,
                   call.topk_weights,
                   s.top_k,
                   hidden,
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
