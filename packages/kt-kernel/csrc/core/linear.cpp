// SPDX-License-Identifier: Apache-2.0
// Linear: one packed matrix and its bias. Multiplying by it is the linear op (ops.cpp).
#include "kt/experts.h"
#include "kt/thread_pool.h"

namespace kt {

Linear::Linear(const Source& weight, int n, int k, Format format, int group_size, const float* bias,
               ThreadPool* pool) {
  matrix_ = shape_matrix("linear", format, n, k, group_size);
  storage_ = AlignedBuffer(matrix_bytes(matrix_));
  matrix_.data = storage_.data();
  if (bias != nullptr) bias_.assign(bias, bias + n);
  const int64_t panels = matrix_.n_padded / kPanelRows;
  if (pool == nullptr) {
    pack_panels("linear.pack", weight, matrix_, {0, panels});
    return;
  }
  // 8 panels of a typical K are a few hundred KiB: long enough to hide handing them out.
  constexpr int64_t kChunkPanels = 8;
  pool->run([&](Worker& worker) {
    worker.parallel_for(panels, kChunkPanels, [&](int64_t begin, int64_t end) {
      pack_panels("linear.pack", weight, matrix_, {begin, end});
    });
  });
}

}  // namespace kt
