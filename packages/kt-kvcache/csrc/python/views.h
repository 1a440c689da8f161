// SPDX-License-Identifier: Apache-2.0
// Layers and page ids of a PageView (arena.py) as plain memory, checked.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <vector>

#include "move/batch.h"

namespace kt::kvcache {

namespace nb = nanobind;

struct View {
  std::vector<Layer> layers;
  std::vector<int64_t> page_ids;            // each a row of every layer
  std::vector<nb::ndarray<nb::ro>> arrays;  // keep the layers' memory
  size_t page_bytes = 0;

  // Throws std::invalid_argument: `op` and what does not fit.
  View(const char* op, nb::sequence layer_buffers, nb::sequence page_ids, bool writable);
};

}  // namespace kt::kvcache
