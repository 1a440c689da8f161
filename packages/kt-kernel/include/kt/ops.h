// SPDX-License-Identifier: Apache-2.0
// Builds ops from arguments whose shapes are already validated: partitioning over workers, live
// rows, one count per run. What only the run can know (ids, positions, pages) is checked when the
// op runs, before it writes.
#pragma once

#include <span>

#include "kt/experts.h"
#include "kt/kernels.h"
#include "kt/moe.h"
#include "kt/stream.h"

namespace kt {

// Every function records or runs on `stream`; pointers must outlive the run (eager) or the graph
// (recorded). `rows` is the capacity in tokens: with Stream::num_rows() the live rows are min(rows,
// *num_rows), read when the op runs. The Range member of each Args is ignored: the op fills it per
// worker.
void embedding(Stream& stream, EmbeddingArgs args, int64_t rows);
void rms_norm(Stream& stream, RmsNormArgs args, int64_t rows,
              int64_t rows_per_token);  // (tokens, heads, dim): heads per token
// One matrix of a linear op and where its outputs go, [rows][n].
struct LinearTerm {
  const Linear* weight;
  float* out;
};
// Several matrices on the same x share its preparation and the op's two barriers.
void linear(Stream& stream, std::span<const LinearTerm> terms, const void* x, DType dtype,
            int64_t rows, bool accumulate);
void rope_write_kv(Stream& stream, RopeWriteKvArgs args, int64_t rows);
void attention(Stream& stream, const AttentionArgs& args, int64_t rows);  // fills the unit
void activate(Stream& stream, ActivateArgs args, int64_t rows, int64_t columns);
void add(Stream& stream, AddArgs args, int64_t rows, int64_t columns);
void route(Stream& stream, RouteArgs args, int64_t rows);  // padding rows: ids -1, weights 0
void moe(Stream& stream, Moe& moe, const MoeCall& call);

// The op of one MoE call, for a caller that queues it on the pool itself. num_rows as in Stream.
Op moe_op(Moe& moe, const MoeCall& call, const int32_t* num_rows);

}  // namespace kt
