// SPDX-License-Identifier: Apache-2.0
// Packed weights: Linear (one matrix) and Experts (three matrices per expert). They own their
// bytes; no compute here.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kt/aligned_buffer.h"
#include "kt/formats.h"
#include "kt/kernels.h"

namespace kt {

class ThreadPool;

enum class Projection : uint8_t { gate, up, down };

class Linear {
 public:
  // weight: (n, k) row-major of dtype; bias: [n] float or null. Packs in parallel on pool, or in
  // this thread if null.
  Linear(const void* weight, DType dtype, int n, int k, Format format, int group_size,
         const float* bias, ThreadPool* pool);
  const PackedMatrix& matrix() const { return matrix_; }
  const float* bias() const { return bias_.empty() ? nullptr : bias_.data(); }
  size_t nbytes() const { return storage_.size(); }

 private:
  AlignedBuffer storage_;
  PackedMatrix matrix_;
  std::vector<float> bias_;
};

class Experts {
 public:
  // group_size: 32, 64 or 128 for the integer formats among the three; the float formats ignore it.
  Experts(int num_experts, int hidden_size, int intermediate_size, Format gate, Format up,
          Format down, int group_size);

  // Pack one projection of one expert: gate, up (intermediate, hidden); down (hidden,
  // intermediate). Different (expert, projection) pairs may be put from different threads at once.
  void put(int expert, Projection projection, const void* weight, DType dtype, int n, int k);
  bool complete() const;  // every projection of every expert was put
  PackedMatrix matrix(int expert, Projection projection) const;
  Format format(Projection projection) const { return formats_[static_cast<int>(projection)]; }

  int num_experts() const { return num_experts_; }
  int hidden_size() const { return hidden_size_; }
  int intermediate_size() const { return intermediate_size_; }
  size_t nbytes() const { return storage_.size(); }

 private:
  PackedMatrix shape(Projection projection) const;

  int num_experts_, hidden_size_, intermediate_size_;
  Format formats_[3];
  int group_size_;
  size_t offsets_[3]{},
      expert_bytes_ = 0;  // an expert's gate, up, down lie together, each data then scales
  AlignedBuffer storage_;
  std::vector<uint8_t> present_;  // [expert][projection], written by different threads at once
};

// Pack rows [rows.begin, rows.end) of one (n, k) matrix; rows.begin must be a multiple of
// kPanelRows. Pure function.
void pack_rows(const void* weight, DType dtype, const PackedMatrix& into, Range rows);

}  // namespace kt
