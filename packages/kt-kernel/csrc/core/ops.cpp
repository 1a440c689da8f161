// SPDX-License-Identifier: Apache-2.0
// Ops: which worker calls which kernel on which rows, and the checks that only a run can make. No
// arithmetic here. Every worker makes the same checks before it writes: cheaper than a barrier
// behind one worker that does. Attention, which must plan as well, has that barrier.
#include "kt/ops.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "attention_plan.h"
#include "bands.h"
#include "kt/check.h"
#include "kt/dispatch.h"
#include "kt/rounding.h"

namespace kt {
namespace {

// Handing out a chunk costs about 100 ns; 16 Ki elements of the simplest kernel take 2 us.
constexpr int64_t kChunkElements = 16 * 1024;

int64_t grain_for(int64_t elements_per_unit) {
  return std::max<int64_t>(1, kChunkElements / std::max<int64_t>(1, elements_per_unit));
}

int64_t live_rows(const int32_t* num_rows, int64_t capacity) {
  return num_rows == nullptr ? capacity : std::clamp<int64_t>(*num_rows, 0, capacity);
}

const void* element(const void* array, DType dtype, int64_t index) {
  return static_cast<const std::byte*>(array) + index * (dtype == DType::f32 ? 4 : 2);
}

// body(worker, live rows) is the SPMD function of the op.
template <class Body>
Op make_op(const char* name, ThreadPool& pool, const int32_t* num_rows, int64_t capacity,
           Body body) {
  std::atomic<uint64_t>& runs = pool.counter(name);
  return {name, [&runs, num_rows, capacity, body = std::move(body)](Worker& worker) {
            if (worker.id() == 0) runs.fetch_add(1, std::memory_order_relaxed);
            body(worker, live_rows(num_rows, capacity));
          }};
}

template <class Body>
void submit(Stream& stream, const char* name, int64_t capacity, Body body) {
  stream.submit(make_op(name, stream.pool(), stream.num_rows(), capacity, std::move(body)));
}

// Fills the range member of a worker's own copy of args, chunk by chunk. Ends at a barrier.
template <class Args>
void run_chunks(Worker& worker, int64_t count, int64_t grain, void (*kernel)(const Args&),
                Range Args::* range, Args args) {
  worker.parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    args.*range = {begin, end};
    kernel(args);
  });
}

// The rows of x as the matrices of one act mode read them: at `offset` of the op's scratch.
struct LinearInput {
  ActMode mode;
  int k_padded;
  size_t row_bytes, offset;
};

// One matrix of a linear op and what it reads.
struct LinearPart {
  GemmArgs gemm;
  size_t input;

  int64_t panels() const { return gemm.b.n_padded / kPanelRows; }
};

void check_hash_rows(const RouteArgs& args, int64_t live) {
  for (int64_t t = 0; args.hash_table != nullptr && t < live; ++t) {
    const int64_t token = args.input_ids[t];
    KT_CHECK("route", token >= 0 && token < args.vocab_size, "input_ids must lie in [0, ",
             args.vocab_size, "); got ", token);
    for (int s = 0; s < args.top_k; ++s) {
      const int32_t expert = args.hash_table[token * args.top_k + s];
      KT_CHECK("route", expert >= 0 && expert < args.num_experts,
               "hash_table expert must lie in [0, ", args.num_experts, "); got ", expert);
    }
  }
}

}  // namespace

void embedding(Stream& stream, EmbeddingArgs args, int64_t rows) {
  submit(stream, "embedding", rows, [args](Worker& worker, int64_t live) {
    for (int64_t t = 0; t < live; ++t)
      KT_CHECK("embedding", args.ids[t] >= 0 && args.ids[t] < args.vocab_size,
               "ids must lie in [0, ", args.vocab_size, "); got ", args.ids[t]);
    run_chunks(worker, live, grain_for(args.hidden), kernels().embedding, &EmbeddingArgs::tokens,
               args);
  });
}

void rms_norm(Stream& stream, RmsNormArgs args, int64_t rows, int64_t rows_per_token) {
  submit(stream, "rms_norm", rows, [args, rows_per_token](Worker& worker, int64_t live) {
    run_chunks(worker, live * rows_per_token, grain_for(args.columns), kernels().rms_norm,
               &RmsNormArgs::rows, args);
  });
}

void linear(Stream& stream, std::span<const LinearTerm> terms, const void* x, DType dtype,
            int64_t rows, bool accumulate) {
  std::vector<LinearInput> inputs;
  std::vector<LinearPart> parts;
  size_t bytes = 0;
  for (const LinearTerm& term : terms) {
    const PackedMatrix& matrix = term.weight->matrix();
    const ActMode mode = info(matrix.format).act_mode;
    const auto same = std::find_if(inputs.begin(), inputs.end(), [&](const LinearInput& input) {
      return input.mode == mode && input.k_padded == matrix.k_padded;
    });
    parts.push_back({{{}, matrix, term.weight->bias(), term.out, matrix.n, accumulate, {}},
                     static_cast<size_t>(same - inputs.begin())});
    if (same != inputs.end()) continue;
    const size_t row_bytes = act_row_bytes(mode, matrix.k_padded);
    inputs.push_back({mode, matrix.k_padded, row_bytes, bytes});
    bytes += row_bytes * rows;
  }
  // Taken when the op is built, so that a replay never allocates.
  const auto scratch = stream.pool().scratch(bytes);
  const int k = parts[0].gemm.b.k;
  submit(stream, "linear", rows,
         [scratch, inputs = std::move(inputs), parts = std::move(parts), x, dtype, k](
             Worker& worker, int64_t live) {
           const Kernels& table = kernels();
           // Tiles as even as can be, because small ones are slow.
           const int64_t tiles = ceil_div(live, kTileRows);
           const int64_t tile_rows = ceil_div(live, std::max<int64_t>(1, tiles));
           const auto tile_of = [&](const LinearInput& input, int64_t first) {
             const int count = static_cast<int>(std::min(tile_rows, live - first));
             return act_tile(input.mode, count, input.k_padded,
                             scratch->data() + input.offset + first * input.row_bytes);
           };
           worker.parallel_for(live, 1, [&](int64_t begin, int64_t end) {
             for (int64_t row = begin; row < end; ++row) {
               const int64_t within = row % tile_rows;
               for (const LinearInput& input : inputs)
                 table.prepare_rows({element(x, dtype, row * k),
                                     dtype,
                                     k,
                                     k,
                                     tile_of(input, row - within),
                                     {within, within + 1},
                                     {0, input.k_padded / kBlock}});
             }
           });
           int64_t panels = 0;
           for (const LinearPart& part : parts) panels += part.panels();
           const int64_t band = band_panels(panels * tiles, worker.num_workers(),
                                            tiles > 1 ? kMaxBand : kMaxBandOfOneTile);
           const auto units_of = [&](const LinearPart& part) {
             return ceil_div(part.panels(), band) * tiles;
           };
           int64_t units = 0;
           for (const LinearPart& part : parts) units += units_of(part);
           // Neighbouring units share their panels, which then stay in the worker's cache.
           worker.parallel_for(units, 1, [&](int64_t begin, int64_t end) {
             for (int64_t unit = begin; unit < end; ++unit) {
               auto part = parts.begin();
               int64_t within = unit;
               for (; within >= units_of(*part); ++part) within -= units_of(*part);
               const int64_t panel = within / tiles * band;
               const int64_t row = within % tiles * tile_rows;
               GemmArgs gemm = part->gemm;
               gemm.a = tile_of(inputs[part->input], row);
               gemm.panels = {panel, std::min(panel + band, part->panels())};
               gemm.c += row * gemm.c_stride + panel * kPanelRows;
               table.gemm[static_cast<int>(gemm.b.format)](gemm);
             }
           });
         });
}

void rope_write_kv(Stream& stream, RopeWriteKvArgs args, int64_t rows) {
  submit(stream, "rope_write_kv", rows, [args](Worker& worker, int64_t live) {
    const char* op = "rope_write_kv";
    for (int64_t t = 0; t < live; ++t) {
      KT_CHECK(op, args.positions[t] >= 0 && args.positions[t] < args.max_positions,
               "positions must lie in [0, ", args.max_positions, "); got ", args.positions[t]);
      KT_CHECK(op, args.slot_mapping[t] < args.num_slots, "slot_mapping must lie below ",
               args.num_slots, " (negative: not written); got ", args.slot_mapping[t]);
    }
    const int64_t heads = args.num_heads + int64_t{2} * args.num_kv_heads;
    run_chunks(worker, live, grain_for(heads * args.head_dim), kernels().rope_write_kv,
               &RopeWriteKvArgs::tokens, args);
  });
}

void attention(Stream& stream, const AttentionArgs& args, int64_t rows) {
  const auto plan = std::make_shared<AttentionPlan>(stream.pool(), args, rows);
  submit(stream, "attention", rows, [plan](Worker& worker, int64_t live) {
    if (worker.id() == 0) plan->make(live);
    worker.barrier();
    const auto run = [&](void (*kernel)(const AttentionArgs&), int64_t count, auto part) {
      worker.parallel_for(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) kernel(((*plan).*part)(i, worker.id()));
      });
    };
    run(kernels().attention, plan->units(), &AttentionPlan::unit);
    if (plan->merges() > 0) run(kernels().merge_attention, plan->merges(), &AttentionPlan::merge);
  });
}

void activate(Stream& stream, ActivateArgs args, int64_t rows, int64_t columns) {
  args.stride = columns;
  submit(stream, "activate", rows, [args, columns](Worker& worker, int64_t live) {
    const auto kernel = kernels().activate;
    // exp makes an element about four times as dear as the simplest kernel's.
    const int64_t width = std::min(std::max<int64_t>(1, columns), kChunkElements / 4);
    const int64_t blocks = ceil_div(columns, width);
    worker.parallel_for(live * blocks, grain_for(4 * width), [&](int64_t begin, int64_t end) {
      ActivateArgs part = args;
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit / blocks, column = unit % blocks * width;
        part.rows = {row, row + 1};
        part.columns = {column, std::min(column + width, columns)};
        kernel(part);
      }
    });
  });
}

void add(Stream& stream, AddArgs args, int64_t rows, int64_t columns) {
  submit(stream, "add", rows, [args, columns](Worker& worker, int64_t live) {
    run_chunks(worker, live * columns, kChunkElements, kernels().add, &AddArgs::elements, args);
  });
}

void route(Stream& stream, RouteArgs args, int64_t rows) {
  submit(stream, "route", rows, [args, rows](Worker& worker, int64_t live) {
    check_hash_rows(args, live);
    const auto kernel = kernels().route;
    const int64_t grain = grain_for(int64_t{args.num_experts} * args.top_k);
    worker.parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
      RouteArgs part = args;
      part.rows = {std::min(begin, live), std::min(end, live)};
      kernel(part);
      const int64_t padding =
          std::max(begin, live) * args.top_k;  // routed nowhere: no expert works
      std::fill(args.topk_ids + padding, args.topk_ids + std::max(padding, end * args.top_k), -1);
      std::fill(args.topk_weights + padding,
                args.topk_weights + std::max(padding, end * args.top_k), 0.0f);
    });
  });
}

Op moe_op(Moe& moe, const MoeCall& call, const int32_t* num_rows) {
  return make_op("moe", moe.pool(), num_rows, call.rows,
                 [&moe, call](Worker& worker, int64_t live) { moe.run(worker, call, live); });
}

void moe(Stream& stream, Moe& moe, const MoeCall& call) {
  stream.submit(moe_op(moe, call, stream.num_rows()));
}

}  // namespace kt
