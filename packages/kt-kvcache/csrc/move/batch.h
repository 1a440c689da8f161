// SPDX-License-Identifier: Apache-2.0
// What one call asks of a page mover, as plain memory; it does not know where that comes from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "page_copy.h"

namespace kt::kvcache {

struct Layer {
  std::byte* data;  // row p is page p
  size_t stride;    // bytes of a row
};

struct Batch {
  bool is_read;
  std::vector<Layer> layers;
  std::vector<int64_t> page_ids;
  std::vector<int32_t> fds;  // from here on: of the page page_ids[i]
  std::vector<uint64_t> offsets;
  std::vector<uint64_t> seeds;
  size_t payload_bytes;  // of a page
  size_t extent_bytes;
  int32_t* statuses;     // (pages), out
  uint64_t* sums;        // (pages, extents), expected or out
  size_t runs_left = 0;  // the mover's

  virtual ~Batch() = default;

  size_t num_pages() const { return page_ids.size(); }
  Extents extents(size_t i) const { return {payload_bytes, extent_bytes, seeds[i]}; }
  uint64_t* page_sums(size_t i) const { return sums + i * extents(i).count(); }
  void rows(size_t i, std::vector<Row>& out) const {
    out.clear();
    for (const Layer& layer : layers)
      out.push_back({layer.data + static_cast<size_t>(page_ids[i]) * layer.stride, layer.stride});
  }
};

// Pages [first, last) of a batch, consecutive in one file.
struct Run {
  Batch* batch;
  size_t first, last;

  size_t num_bytes() const { return (last - first) * batch->payload_bytes; }
};

std::vector<Run> runs_of(Batch&);

}  // namespace kt::kvcache
