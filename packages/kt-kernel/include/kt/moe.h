// SPDX-License-Identifier: Apache-2.0
// The Mixture-of-Experts op: y[t] = sum_s weight[t][s] * (down(activation(gate(x[t]), up(x[t]))) +
// biases) over the routed experts. Tokens are grouped by expert, so that each expert's weights are
// read once per call whatever the number of tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kt/experts.h"
#include "kt/kernels.h"
#include "kt/stream.h"

namespace kt {

struct MoeCall {
  const void* hidden;  // [rows][hidden_size] of dtype
  DType dtype;
  const int32_t* topk_ids;    // [rows][top_k]; -1: skip
  const float* topk_weights;  // [rows][top_k]
  void* out;                  // [rows][hidden_size] of out_dtype
  DType out_dtype;
  int64_t rows;  // <= max_tokens
  bool accumulate;
};

class Moe {
 public:
  // All scratch is bounded by max_tokens * top_k, allocated here and shared by the layers of one
  // pool. Throws if experts are incomplete, or have a gate the activation does not use.
  Moe(std::shared_ptr<const Experts> experts, Activation activation, int top_k, int max_tokens,
      ThreadPool& pool);
  ~Moe();

  // SPMD body: one call of the layer over call.rows (or fewer live rows). An id outside [-1,
  // num_experts) throws
  // `[moe.forward] topk_ids must lie in …; got …` before anything is written.
  void run(Worker& worker, const MoeCall& call, int64_t live_rows);

  // Experts whose mask byte is nonzero are held elsewhere and skipped here; effective at the next
  // run. Length num_experts.
  void set_resident(std::vector<uint8_t> mask);

  const Experts& experts() const;
  int top_k() const;
  int max_tokens() const;
  ThreadPool& pool() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kt
