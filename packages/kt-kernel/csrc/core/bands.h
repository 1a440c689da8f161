// SPDX-License-Identifier: Apache-2.0
// Bands: how many neighbouring panels of a matrix one worker takes at a time. Who takes which:
// Worker::parallel_for.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kt/formats.h"
#include "kt/rounding.h"

namespace kt {

// Weights are fetched ahead of their use. At the beginning of a band none have been, and what is
// fetched at its end belongs to another worker: long bands are faster (ADR 0006). But several tiles
// of rows should find a band in the second-level cache, and of a typical K 32 panels are half a MiB
// or less.
constexpr int64_t kMaxBand = 32;
constexpr int64_t kMaxBandOfOneTile = 128;
// A bundle, and a block of K of the projection that reads these outputs.
constexpr int64_t kMinBand = kBundlePanels;
static_assert(kMinBand * kPanelRows % kBlock == 0);
// Enough for those who finish early to help the others.
constexpr int64_t kUnitsPerWorker = 8;

// The most panels of a band, where `panels` are to be multiplied in all, once for each tile of
// rows.
inline int64_t band_panels(int64_t panels, int64_t num_workers, int64_t most) {
  return std::clamp(panels / (num_workers * kUnitsPerWorker) / kMinBand * kMinBand, kMinBand, most);
}

// Panels of each band of a matrix, at most so many: as even as can be, so that no short one is
// left.
inline int64_t even_band(int64_t panels, int64_t most) {
  return round_up(ceil_div(panels, ceil_div(panels, most)), kMinBand);
}

}  // namespace kt
