// SPDX-License-Identifier: Apache-2.0
// Experts: storage of all packed matrices of one MoE layer, filled one projection of one expert at
// a time.
#include "kt/experts.h"

#include <algorithm>

#include "kt/check.h"

namespace kt {

Experts::Experts(int num_experts, int hidden_size, int intermediate_size,
                 std::optional<Format> gate, Format up, Format down, int group_size)
    : num_experts_(num_experts),
      hidden_size_(hidden_size),
      intermediate_size_(intermediate_size),
      group_size_(group_size),
      gated_(gate.has_value()) {
  KT_CHECK("experts", num_experts > 0 && hidden_size > 0 && intermediate_size > 0,
           "num_experts, hidden_size and intermediate_size must be positive; got ", num_experts,
           ", ", hidden_size, ", ", intermediate_size);
  const Format formats[3] = {gate.value_or(up), up, down};
  for (int p = gated_ ? 0 : 1; p < 3; ++p) {
    const bool down = static_cast<Projection>(p) == Projection::down;
    shapes_[p] = shape_matrix("experts", formats[p], down ? hidden_size : intermediate_size,
                              down ? intermediate_size : hidden_size, group_size);
    offsets_[p] = expert_bytes_;
    expert_bytes_ += matrix_bytes(shapes_[p]);
  }
  KT_CHECK("experts", expert_bytes_ <= kMaxBytes / num_experts,
           "all experts together must take less than 128 TiB; got ", num_experts, " of ",
           expert_bytes_, " bytes");
  storage_ = AlignedBuffer(expert_bytes_ * num_experts);
  present_.assign(static_cast<size_t>(num_experts) * 3, 0);
  for (int expert = 0; expert < num_experts && !gated_; ++expert)
    present_[static_cast<size_t>(expert) * 3] = 1;  // there is nothing to put
}

PackedMatrix Experts::matrix(int expert, Projection projection) const {
  const int p = static_cast<int>(projection);
  PackedMatrix matrix = shapes_[p];
  matrix.data = storage_.data() + expert * expert_bytes_ + offsets_[p];
  return matrix;
}

void Experts::put(int expert, Projection projection, const Source& weight) {
  KT_CHECK("experts.put", expert >= 0 && expert < num_experts_, "expert must lie in [0, ",
           num_experts_, "); got ", expert);
  KT_CHECK("experts.put", gated_ || projection != Projection::gate,
           "projection must be up or down of experts without a gate; got gate");
  const PackedMatrix into = matrix(expert, projection);
  pack_panels("experts.put", weight, into, {0, into.n_padded / kPanelRows});
  present_[static_cast<size_t>(expert) * 3 + static_cast<int>(projection)] = 1;
}

void Experts::put_bias(Projection projection, const float* bias) {
  const int p = static_cast<int>(projection);
  biases_[p].assign(bias, bias + static_cast<size_t>(num_experts_) * shapes_[p].n);
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
