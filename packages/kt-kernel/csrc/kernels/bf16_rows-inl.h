// SPDX-License-Identifier: Apache-2.0
// Activations of a bf16 tile as 16-bit numbers, for instructions that multiply pairs of them. No
// arithmetic: the floats of such a tile are bf16 already. Textual, included inside a target's
// namespace.

// One block of all rows; pairs of K are words.
inline void load_bf16_rows(const ActTile& act, int64_t index, uint16_t (*to)[kBlock]) {
  const float* a = static_cast<const float*>(act.data) + index * act.rows * kBlock;
  for (int row = 0; row < act.rows; ++row)
    for (int k = 0; k < kBlock; k += Vec::kLanes)
      Vec::store_bf16(to[row] + k, Vec::load(a + row * kBlock + k));
}
