// SPDX-License-Identifier: Apache-2.0
// Does with emulated tiles what its argument says, good or bad. Not part of the package.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string_view>

#include "kt/half.h"
#include "simd/tile_config.h"

namespace kt::test {
#include "simd/tile_emu.h"

TileConfig good() {
  TileConfig config;
  config.shape(0, 3, 64);  // 3 x 16 sums
  config.shape(1, 3, 8);   // 3 x 8 bytes or 3 x 4 bf16
  config.shape(2, 2, 64);
  return config;
}

int run(std::string_view what) {
  TileConfig config = good();
  if (what == "palette") config.palette = 2;
  if (what == "reserved") config.reserved[5] = 1;
  if (what == "too many rows") config.rows[3] = 17, config.row_bytes[3] = 64;
  if (what == "too wide") config.rows[3] = 1, config.row_bytes[3] = 68;
  if (what == "rows without bytes") config.rows[3] = 4;
  if (what == "ninth tile") config.rows[8] = 1, config.row_bytes[8] = 4;
  if (what == "shapes") config.rows[2] = 3;
  if (what != "no configuration") Tile::configure(config);
  if (what == "unused tile") Tile::zero<5>();
  if (what == "released") Tile::release();
  alignas(64) uint8_t a[3][8];
  alignas(64) int8_t b[2][64];
  alignas(64) int32_t sums[3][16];
  for (int m = 0; m < 3; ++m)
    for (int k = 0; k < 8; ++k) a[m][k] = static_cast<uint8_t>(40 * m - 7 * k - 100 * (k % 2));
  for (int k = 0; k < 8; ++k)
    for (int n = 0; n < 16; ++n) b[k / 4][4 * n + k % 4] = static_cast<int8_t>(11 * k - 8 * n);
  Tile::zero<0>();
  Tile::load<1>(a, 8);
  Tile::load<2>(b, 64);
  if (what == "same tile")
    Tile::dot_u8s8<0, 1, 1>();
  else
    Tile::dot_u8s8<0, 1, 2>();
  Tile::dot_u8s8<0, 1, 2>();  // sums go on
  Tile::store<0>(sums, 64);
  Tile::release();
  for (int m = 0; m < 3; ++m)
    for (int n = 0; n < 16; ++n) {
      int expected = 0;
      for (int k = 0; k < 8; ++k) expected += 2 * a[m][k] * b[k / 4][4 * n + k % 4];
      if (sums[m][n] != expected) return 1;
    }
  return 0;
}

}  // namespace kt::test

int main(int, char** arguments) { return kt::test::run(arguments[1]); }
