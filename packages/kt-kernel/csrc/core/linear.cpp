// SPDX-License-Identifier: Apache-2.0
// Linear: one packed matrix and its bias. Multiplying by it is the linear op (ops.cpp).
#include "kt/experts.h"
#include "kt/thread_pool.h"

namespace kt {

Linear::Linear(const void* weight, DType dtype, int n, int k, Format format, int group_size,
               const float* bias, ThreadPool* pool) {
  matrix_ = place_matrix("linear", format, n, k, group_size, nullptr);
  storage_ = AlignedBuffer(data_bytes(format, n, k) + scale_bytes(format, n, k, group_size));
  matrix_ = place_matrix("linear", format, n, k, group_size, storage_.data());
  if (bias != nullptr) bias_.assign(bias, bias + n);
  if (pool == nullptr) {
    pack_rows(weight, dtype, matrix_, {0, n});
    return;
  }
  // 8 panels of a typical K are a few hundred KiB: long enough to hide handing them out.
  constexpr int64_t kChunkPanels = 8;
  pool->run([&](Worker& worker) {
    worker.parallel_for(matrix_.n_padded / kPanelRows, kChunkPanels,
                        [&](int64_t begin, int64_t end) {
                          pack_rows(weight, dtype, matrix_, {begin * kPanelRows, end * kPanelRows});
                        });
  });
}

}  // namespace kt
