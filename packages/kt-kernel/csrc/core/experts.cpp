// SPDX-License-Identifier: Apache-2.0
// Experts: storage of all packed matrices of one MoE layer, filled one projection of one expert at
// a time or found packed in a file.
#include "kt/experts.h"

#include <algorithm>

#include "kt/check.h"
#include "kt/thread_pool.h"

namespace kt {

Experts::Experts(const char* op, int num_experts, int hidden_size, int intermediate_size,
                 std::optional<Format> gate, Format up, Format down, int group_size)
    : num_experts_(num_experts),
      hidden_size_(hidden_size),
      intermediate_size_(intermediate_size),
      group_size_(group_size),
      gated_(gate.has_value()) {
  KT_CHECK(op, num_experts > 0 && hidden_size > 0 && intermediate_size > 0,
           "num_experts, hidden_size and intermediate_size must be positive; got ", num_experts,
           ", ", hidden_size, ", ", intermediate_size);
  const Format formats[3] = {gate.value_or(up), up, down};
  for (int p = gated_ ? 0 : 1; p < 3; ++p) {
    const bool down = static_cast<Projection>(p) == Projection::down;
    shapes_[p] = shape_matrix(op, formats[p], down ? hidden_size : intermediate_size,
                              down ? intermediate_size : hidden_size, group_size);
    offsets_[p] = expert_bytes_;
    expert_bytes_ += matrix_bytes(shapes_[p]);
  }
  KT_CHECK(op, expert_bytes_ <= kMaxBytes / num_experts,
           "all experts together must take less than 128 TiB; got ", num_experts, " of ",
           expert_bytes_, " bytes");
}

Experts::Experts(int num_experts, int hidden_size, int intermediate_size,
                 std::optional<Format> gate, Format up, Format down, int group_size)
    : Experts("experts", num_experts, hidden_size, intermediate_size, gate, up, down, group_size) {
  const auto buffer = std::make_shared<AlignedBuffer>(nbytes());
  storage_ = {buffer, buffer->data()};
  present_.assign(static_cast<size_t>(num_experts) * 3, 0);
  for (int expert = 0; expert < num_experts && !gated_; ++expert)
    present_[static_cast<size_t>(expert) * 3] = 1;  // there is nothing to put
}

Experts::Experts(int num_experts, int hidden_size, int intermediate_size,
                 std::optional<Format> gate, Format up, Format down, int group_size,
                 const FileRange& file, bool copy, ThreadPool* pool)
    : Experts("experts.load", num_experts, hidden_size, intermediate_size, gate, up, down,
              group_size) {
  const char* op = "experts.load";
  KT_CHECK(op, file.bytes == nbytes(), "weights of these sizes and formats must take ", nbytes(),
           " bytes; got ", file.bytes);
  KT_CHECK(op, file.offset % 64 == 0, "weights must begin at a multiple of 64; got byte ",
           file.offset);
  storage_ = copy ? copy_file(op, file, pool) : map_file(op, file);
  writable_ = false;
  present_.assign(static_cast<size_t>(num_experts) * 3, 1);
}

PackedMatrix Experts::matrix(int expert, Projection projection) const {
  const int p = static_cast<int>(projection);
  PackedMatrix matrix = shapes_[p];
  matrix.data = storage_.get() + expert * expert_bytes_ + offsets_[p];
  return matrix;
}

void Experts::put(int expert, Projection projection, const Source& weight) {
  KT_CHECK("experts.put", expert >= 0 && expert < num_experts_, "expert must lie in [0, ",
           num_experts_, "); got ", expert);
  KT_CHECK(
      "experts.put", writable_,
      "experts must be ones that Experts.empty or Experts.pack made; got loaded ones, which are "
      "read-only");
  check_projection("experts.put", projection);
  const PackedMatrix into = matrix(expert, projection);
  pack_panels("experts.put", weight, into, {0, into.n_padded / kPanelRows});
  present_[static_cast<size_t>(expert) * 3 + static_cast<int>(projection)] = 1;
}

void Experts::put_all(Projection projection, const Source& weights, ThreadPool& pool) {
  check_projection("experts.put_all", projection);
  const PackedMatrix& shape = shapes_[static_cast<int>(projection)];
  const FormatInfo& facts = info(shape.format);
  const size_t row_bytes = weights.quantized
                               ? size_t(shape.k) / facts.source_k * facts.source_bytes
                               : size_t(shape.k) * (weights.dtype == DType::f32 ? 4 : 2);
  const auto* first = static_cast<const std::byte*>(weights.weight);
  pool.run([&](Worker& worker) {
    worker.parallel_for(num_experts_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t expert = begin; expert < end; ++expert) {
        Source one = weights;
        one.weight = first + expert * shape.n * row_bytes;
        put(static_cast<int>(expert), projection, one);
      }
    });
  });
}

void Experts::put_bias(Projection projection, const float* bias) {
  check_projection("experts.put_bias", projection);
  const int p = static_cast<int>(projection);
  biases_[p].assign(bias, bias + static_cast<size_t>(num_experts_) * shapes_[p].n);
}

void Experts::check_projection(const char* op, Projection projection) const {
  KT_CHECK(op, gated_ || projection != Projection::gate,
           "projection must be up or down of experts without a gate; got gate");
}

const float* Experts::bias(int expert, Projection projection) const {
  const int p = static_cast<int>(projection);
  if (biases_[p].empty()) return nullptr;
  return biases_[p].data() + static_cast<size_t>(expert) * shapes_[p].n;
}

bool Experts::complete() const {
  return std::all_of(present_.begin(), present_.end(), [](uint8_t put) { return put != 0; });
}

}  // namespace kt
