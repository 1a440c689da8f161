// SPDX-License-Identifier: Apache-2.0
// Packed weights: Linear (one matrix) and Experts (three matrices per expert). Storage only; no
// compute here.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kt/aligned_buffer.h"
#include "kt/file_memory.h"
#include "kt/formats.h"
#include "kt/kernels.h"

namespace kt {

class ThreadPool;

enum class Projection : uint8_t { gate, up, down };

// A weight matrix as a caller has it: floats, or already quantised as its FormatInfo says.
struct Source {
  const void* weight = nullptr;
  DType dtype{};
  bool quantized = false;
  const void* scales = nullptr;
  const uint8_t* zeros = nullptr;
};

// Pack `panels` of one matrix. Pure function of the source. Throws `[op] …` on quantised values
// that the format cannot hold.
void pack_panels(const char* op, const Source& source, const PackedMatrix& into, Range panels);

class Linear {
 public:
  // weight: (n, k) row-major; bias: [n] float or null. Packs in parallel on pool, or in this thread
  // if null.
  Linear(const Source& weight, int n, int k, Format format, int group_size, const float* bias,
         ThreadPool* pool);
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
  // group_size: 32, 64 or 128, or 0 for one group per row, for the formats among the three that let
  // the caller choose. No gate: experts of an activation that is not gated.
  Experts(int num_experts, int hidden_size, int intermediate_size, std::optional<Format> gate,
          Format up, Format down, int group_size);
  // As above with their packed bytes, which are all of `file`: copied (by `pool` or this thread),
  // or else its own pages. They are complete and cannot be put; what a file says is checked by
  // expert_file.py.
  Experts(int num_experts, int hidden_size, int intermediate_size, std::optional<Format> gate,
          Format up, Format down, int group_size, const FileRange& file, bool copy,
          ThreadPool* pool);

  // Pack one projection of one expert: gate, up (intermediate, hidden); down (hidden,
  // intermediate). Different (expert, projection) pairs may be put from different threads at once.
  void put(int expert, Projection projection, const Source& weight);
  // Pack one projection of all experts, whose matrices lie one after another: floats, or quantised
  // weights without scales and zero points of their own.
  void put_all(Projection projection, const Source& weights, ThreadPool& pool);
  // The bias added to a projection's outputs: [num_experts][n] float.
  void put_bias(Projection projection, const float* bias);
  bool complete() const;  // every projection of every expert was put
  PackedMatrix matrix(int expert, Projection projection) const;
  const std::byte* packed() const { return storage_.get(); }   // all matrices, nbytes()
  const float* bias(int expert, Projection projection) const;  // [n] or null
  Format format(Projection projection) const {
    return shapes_[static_cast<int>(projection)].format;
  }

  bool gated() const { return gated_; }
  int num_experts() const { return num_experts_; }
  int hidden_size() const { return hidden_size_; }
  int intermediate_size() const { return intermediate_size_; }
  int group_size() const { return group_size_; }
  size_t nbytes() const { return expert_bytes_ * num_experts_; }

 private:
  // Everything but the storage.
  Experts(const char* op, int num_experts, int hidden_size, int intermediate_size,
          std::optional<Format> gate, Format up, Format down, int group_size);
  void check_projection(const char* op, Projection projection) const;  // throws if there is none

  int num_experts_, hidden_size_, intermediate_size_, group_size_;
  bool gated_;
  PackedMatrix shapes_[3];
  size_t offsets_[3]{}, expert_bytes_ = 0;  // an expert's gate, up, down lie together
  std::shared_ptr<std::byte> storage_;      // memory of our own, or a file's
  bool writable_ = true;
  std::vector<uint8_t> present_;  // [expert][projection], written by different threads at once
  std::vector<float> biases_[3];
};

}  // namespace kt
