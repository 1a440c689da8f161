// SPDX-License-Identifier: Apache-2.0
// Matrix products by tiles (AMX): the blocks that kernels/gemm-inl.h walks, 16 outputs and up to 16
// rows at a time. Textual, included inside a target's namespace after `Tile`, kernels/gemm-inl.h
// and lesser(), the table whose gemm takes few rows.
#include "kernels/bf16_rows-inl.h"

// From this many rows on integer formats use tiles. Both ways give the same bits, so this is a
// matter of speed only. By the published rates one product of 16 x 32 x 16 costs about 30 cycles
// however few its rows (8 to load the weights, 16 to multiply, 16 to store, partly at once), and 8
// vpdpbusd per row 4. bf16 tiles round otherwise than vectors: every number of rows takes them.
inline constexpr int kTileMinRows = 8;

// Which tile holds what. kTileRows rows are three tiles, by one column of 16 outputs; where two
// tiles are enough, there is room for a second column.
inline constexpr int kSumTile = 0, kWeightTile = 6;
inline constexpr int kTileOutputs = kTileMaxBytes / 4;
inline constexpr int kTileVectors = kTileOutputs / Vec::kLanes;  // a pair of panels
inline constexpr int kRowTiles = 3, kWideRowTiles = 2;
static_assert(kTileRows <= kRowTiles * kTileMaxRows);
constexpr int act_tile_of(int part) { return part < 2 ? 4 + part : 3; }
constexpr int sum_tile_of(int part, int column) { return kSumTile + 2 * column + part; }

// Calls body(part, first row), `part` being a constant, for every tile of rows, at most kMost.
template <int kMost, class Body>
inline void for_each_row_tile(int rows, Body&& body) {
  unrolled<kMost>([&](auto part) {
    constexpr int kFirst = part * kTileMaxRows;
    if (kFirst < rows) body(part, kFirst);
  });
}

// Shapes of the tiles that multiply `rows` rows by blocks of 32, of act_bytes each.
inline TileConfig tile_config(int rows, int act_bytes, int columns) {
  TileConfig config;
  for_each_row_tile<kRowTiles>(rows, [&](auto part, int first) {
    const int left = rows - first, here = left < kTileMaxRows ? left : kTileMaxRows;
    config.shape(act_tile_of(part), here, act_bytes);
    for (int column = 0; column < columns; ++column)
      config.shape(sum_tile_of(part, column), here, kTileMaxBytes);
  });
  for (int column = 0; column < columns; ++column)
    config.shape(kWeightTile + column, act_bytes / 4, kTileMaxBytes);
  return config;
}

template <class Format>
struct TiledInteger : Format {
  static constexpr bool kMultipliesTile = true;

  template <int kPanels>
  static void multiply(const std::byte* const (&data)[kPanels],
                       const std::byte* const (&header)[kPanels], int sub, const ActTile& act,
                       int64_t index, Vec::F (*sums)[kPanels]) {
    static_assert(kPanels == kTileVectors);
    alignas(64) std::byte b[kBlock / 4][kTileMaxBytes];
    alignas(64) int32_t start[kTileOutputs];
    BlockScale<Format> scales[kPanels];
    for (int p = 0; p < kPanels; ++p) {
      const auto operands = Format::operands(header[p], sub, Format::kInfo.header_bytes);
      Vec::I w[8];
      unpack_centered<Format>(data[p], operands, w);
      for (int j = 0; j < 8; ++j) std::memcpy(b[j] + p * sizeof(Vec::I), &w[j], sizeof(Vec::I));
      const Vec::I below = minus_128_times_sum(w);
      std::memcpy(start + p * Vec::kLanes, &below, sizeof below);
      scales[p] = {header[p], sub, operands};
    }
    alignas(64) int32_t dots[kTileRows][kTileOutputs];
    const auto* a = static_cast<const uint8_t*>(act.data) + index * act.rows * kBlock;
    Tile::load<kWeightTile>(b, kTileMaxBytes);
    for_each_row_tile<kRowTiles>(act.rows, [&](auto part, int first) {
      product<part>(start, a + first * kBlock, dots + first);
    });
    for (int row = 0; row < act.rows; ++row)
      for (int p = 0; p < kPanels; ++p)
        sums[row][p] = scales[p].add(sums[row][p], Vec::load_i(dots[row] + p * Vec::kLanes), act,
                                     index * act.rows + row);
  }

 private:
  // What activations stored 128 higher add too much: no pair of bytes exceeds 2 * 128 * 128.
  static Vec::I minus_128_times_sum(const Vec::I (&w)[8]) {
    const Vec::I a128 = Vec::set1_i(static_cast<int32_t>(0x80808080));
    Vec::I sum = Vec::zero_i();
    for (int j = 0; j < 8; ++j)
      sum = Vec::add32(sum, Vec::madd16(Vec::maddubs(a128, w[j]), Vec::set1_i(-1)));
    return sum;
  }
  template <int kPart>
  static void product(const int32_t* start, const uint8_t* a, int32_t (*dots)[kTileOutputs]) {
    constexpr int kSum = sum_tile_of(kPart, 0), kAct = act_tile_of(kPart);
    Tile::load<kSum>(start, 0);  // every row the same
    Tile::load<kAct>(a, kBlock);
    Tile::dot_u8s8<kSum, kAct, kWeightTile>();
    Tile::store<kSum>(dots, kTileMaxBytes);
  }
};

// The sums stay in tiles from the first block to the last.
struct TiledBf16 : Bf16 {
  static constexpr bool kMultipliesTile = true;

  template <int kPanels>
  static void multiply(const std::byte* const (&data)[kPanels], const std::byte* const (&)[kPanels],
                       int, const ActTile& act, int64_t index, Vec::F (*sums)[kPanels]) {
    constexpr int kColumns = kPanels / kTileVectors;
    static_assert(kPanels % kTileVectors == 0 && kColumns <= 2);
    alignas(64) uint16_t a[kTileRows][kBlock];
    load_bf16_rows(act, index, a);
    for_each_row_tile<kParts<kColumns>>(act.rows, [&](auto part, int row) {
      Tile::load<act_tile_of(part)>(a + row, kTileMaxBytes);
    });
    const bool first = index == 0, last = index + 1 == act.k_padded / kBlock;
    column<0>(data, act, first, last, sums);
    if constexpr (kColumns == 2) column<1>(data, act, first, last, sums);
  }

 private:
  template <int kColumns>
  static constexpr int kParts = kColumns == 1 ? kRowTiles : kWideRowTiles;

  template <int kColumn, int kPanels>
  static void column(const std::byte* const (&data)[kPanels], const ActTile& act, bool first,
                     bool last, Vec::F (*sums)[kPanels]) {
    constexpr int kWeights = kWeightTile + kColumn;
    alignas(64) std::byte b[kBlock / 2][kTileMaxBytes];
    for (int p = 0; p < kTileVectors; ++p) {
      for (int pair = 0; pair < kBlock / 2; ++pair) {
        const Vec::I w = load_pair(data[kColumn * kTileVectors + p], pair);
        std::memcpy(b[pair] + p * sizeof(Vec::I), &w, sizeof(Vec::I));
      }
    }
    Tile::load<kWeights>(b, kTileMaxBytes);
    alignas(64) float values[kTileRows][kTileOutputs];
    for_each_row_tile<kParts<kPanels / kTileVectors>>(act.rows, [&](auto part, int row) {
      constexpr int kSum = sum_tile_of(part, kColumn);
      if (first) Tile::zero<kSum>();
      Tile::dot_bf16<kSum, act_tile_of(part), kWeights>();
      if (last) Tile::store<kSum>(values + row, kTileMaxBytes);
    });
    if (!last) return;
    for (int row = 0; row < act.rows; ++row)
      for (int p = 0; p < kTileVectors; ++p)
        sums[row][kColumn * kTileVectors + p] = Vec::load(values[row] + p * Vec::kLanes);
  }
};

template <class Format>
inline void gemm_tiled(const GemmArgs& args) {
  if (args.a.rows < kTileMinRows) return lesser().gemm[static_cast<int>(args.b.format)](args);
  Tile::configure(tile_config(args.a.rows, kBlock, 1));
  gemm_range<TiledInteger<Format>, 0, kTileVectors>(args);
  Tile::release();
}

inline void gemm_tiled_bf16(const GemmArgs& args) {
  if (args.a.rows == 0) return;
  const int columns = args.a.rows > kWideRowTiles * kTileMaxRows ? 1 : 2;
  Tile::configure(tile_config(args.a.rows, 2 * kBlock, columns));
  if (columns == 2)
    gemm_range<TiledBf16, 0, 2 * kTileVectors>(args);
  else
    gemm_range<TiledBf16, 0, kTileVectors>(args);
  Tile::release();
}

// The integer formats whose products tiles make. Q6_K's halves have scales of their own: it stays
// with vectors.
template <class Format>
inline constexpr bool kTiledFormat = Format::kInteger && !std::is_same_v<Format, Q6_K>;
