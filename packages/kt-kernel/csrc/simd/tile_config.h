// SPDX-License-Identifier: Apache-2.0
// The operand of ldtilecfg, as the manual lays it out. Data only; both tile policies read it.
#pragma once

#include <cstdint>

namespace kt {

inline constexpr int kTileMaxRows = 16, kTileMaxBytes = 64, kTiles = 8;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};  // of tiles 0 .. 7; a tile without rows stays unused
  uint8_t rows[16] = {};

  constexpr void shape(int tile, int tile_rows, int bytes) {
    if (tile_rows == 0) return;
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace kt
