// SPDX-License-Identifier: Apache-2.0
// Experts: storage of all packed matrices of one MoE layer, filled one projection of one expert at
// a time.
#include "kt/experts.h"

#include <algorithm>

#include "kt/check.h"

namespace kt {
namespace {

constexpr const char* kProjectionNames[3] = {"gate", "up", "down"};

}  // namespace

Experts::Experts(int num_experts, int hidden_size, int intermediate_size, Format gate, Format up,
                 Format down, int group_size)
    : num_experts_(num_experts),
      hidden_size_(hidden_size),
      intermediate_size_(intermediate_size),
      formats_{gate, up, down},
      group_size_(group_size) {
  KT_CHECK("experts", num_experts > 0 && hidden_size > 0 && intermediate_size > 0,
           "num_experts, hidden_size and intermediate_size must be positive; got ", num_experts,
           ", ", hidden_size, ", ", intermediate_size);
  for (int p = 0; p < 3; ++p) {
    const PackedMatrix m = shape(static_cast<Projection>(p));
    offsets_[p] = expert_bytes_;
    expert_bytes_ += data_bytes(m.format, m.n, m.k) + scale_bytes(m.format, m.n, m.k, m.group_size);
  }
  KT_CHECK("experts", expert_bytes_ <= kMaxBytes / num_experts,
           "all experts together must take less than 128 TiB; got ", num_experts, " of ",
           expert_bytes_, " bytes");
  storage_ = AlignedBuffer(expert_bytes_ * num_experts);
  present_.assign(static_cast<size_t>(num_experts) * 3, 0);
}

PackedMatrix Experts::shape(Projection projection) const {
  const bool down = projection == Projection::down;
  return place_matrix("experts", format(projection), down ? hidden_size_ : intermediate_size_,
                      down ? intermediate_size_ : hidden_size_, group_size_, nullptr);
}

PackedMatrix Experts::matrix(int expert, Projection projection) const {
  const PackedMatrix m = shape(projection);
  const std::byte* at =
      storage_.data() + expert * expert_bytes_ + offsets_[static_cast<int>(projection)];
  return place_matrix("experts", m.format, m.n, m.k, group_size_, at);
}

void Experts::put(int expert, Projection projection, const void* weight, DType dtype, int n,
                  int k) {
  KT_CHECK("experts.put", expert >= 0 && expert < num_experts_, "expert must lie in [0, ",
           num_experts_, "); got ", expert);
  const PackedMatrix into = matrix(expert, projection);
  const int p = static_cast<int>(projection);
  KT_CHECK("experts.put", n == into.n && k == into.k, kProjectionNames[p], " must have shape (",
           into.n, ", ", into.k, "); got (", n, ", ", k, ")");
  pack_rows(weight, dtype, into, {0, n});
  present_[static_cast<size_t>(expert) * 3 + p] = 1;
}

bool Experts::complete() const {
  return std::all_of(present_.begin(), present_.end(), [](uint8_t put) { return put != 0; });
}

}  // namespace kt
