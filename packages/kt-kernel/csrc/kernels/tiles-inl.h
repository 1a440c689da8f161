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

// Which tile holds what. kTileRows rows are two tiles, of columns there are up to two.
inline constexpr int kSumTile = 0, kActTile = 4, kWeightTile = 6;
inline constexpr int kTileOutputs = kTileMaxBytes / 4;
inline constexpr int kTileVectors = kTileOutputs / Vec::kLanes;  // a pair of panels
static_assert(kTileRows <= 2 * kTileMaxRows);

// Shapes of the tiles that multiply `rows` rows by blocks of 32, of act_bytes each.
inline TileConfig tile_config(int rows, int act_bytes, int columns) {
  TileConfig config;
  for (int half = 0; half < 2; ++half) {
    const int left = rows - half * kTileMaxRows;
    const int here = left < 0 ? 0 : left < kTileMaxRows ? left : kTileMaxRows;
    config.shape(kActTile + half, here, act_bytes);
    for (int column = 0; column < columns; ++column)
      config.shape(kSumTile + 2 * column + half, here, kTileMaxBytes);
  }
  for (int column = 0; column < columns; ++column)
    config.shape(kWeightTile + column, act_bytes / 4, kTileMaxBytes);
  return config;
}

template <class Format>
struct TiledInteger : Format {
  static constexpr bool kMultipliesTile = true;

  template <int kPanels>
  static void multiply(const std::byte* const (&data)[kPanels],
                       const std::byte* const (&header)[kPanels], int sub, int64_t stride,
                       const ActTile& act, int64_t index, Vec::F (*sums)[kPanels]) {
    static_assert(kPanels == kTileVectors);
    alignas(64) std::byte b[kBlock / 4][kTileMaxBytes];
    alignas(64) int32_t start[kTileOutputs];
    BlockScale<Format> scales[kPanels];
    for (int p = 0; p < kPanels; ++p) {
      const auto operands = Format::operands(header[p], sub, stride);
      Vec::I w[8];
      unpack_centered<Format>(data[p], stride, operands, w);
      for (int j = 0; j < 8; ++j) std::memcpy(b[j] + p * sizeof(Vec::I), &w[j], sizeof(Vec::I));
      const Vec::I below = minus_128_times_sum(w);
      std::memcpy(start + p * Vec::kLanes, &below, sizeof below);
      scales[p] = {header[p], sub, stride, operands};
    }
    alignas(64) int32_t dots[kTileRows][kTileOutputs];
    const auto* a = static_cast<const uint8_t*>(act.data) + index * act.rows * kBlock;
    Tile::load<kWeightTile>(b, kTileMaxBytes);
    product<0>(start, a, dots);
    if (act.rows > kTileMaxRows) product<1>(start, a + kTileMaxRows * kBlock, dots + kTileMaxRows);
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
  template <int kHalf>
  static void product(const int32_t* start, const uint8_t* a, int32_t (*dots)[kTileOutputs]) {
    Tile::load<kSumTile + kHalf>(start, 0);  // every row the same
    Tile::load<kActTile + kHalf>(a, kBlock);
    Tile::dot_u8s8<kSumTile + kHalf, kActTile + kHalf, kWeightTile>();
    Tile::store<kSumTile + kHalf>(dots, kTileMaxBytes);
  }
};

// The sums stay in tiles from the first block to the last.
struct TiledBf16 : Bf16 {
  static constexpr bool kMultipliesTile = true;

  template <int kPanels>
  static void multiply(const std::byte* const (&data)[kPanels], const std::byte* const (&)[kPanels],
                       int, int64_t stride, const ActTile& act, int64_t index,
                       Vec::F (*sums)[kPanels]) {
    constexpr int kColumns = kPanels / kTileVectors;
    static_assert(kPanels % kTileVectors == 0 && kColumns <= 2);
    alignas(64) uint16_t a[kTileRows][kBlock];
    load_bf16_rows(act, index, a);
    Tile::load<kActTile>(a, kTileMaxBytes);
    if (act.rows > kTileMaxRows) Tile::load<kActTile + 1>(a + kTileMaxRows, kTileMaxBytes);
    const bool first = index == 0, last = index + 1 == act.k_padded / kBlock;
    column<0>(data, stride, act, first, last, sums);
    if constexpr (kColumns == 2) column<1>(data, stride, act, first, last, sums);
  }

 private:
  template <int kColumn, int kPanels>
  static void column(const std::byte* const (&data)[kPanels], int64_t stride, const ActTile& act,
                     bool first, bool last, Vec::F (*sums)[kPanels]) {
    constexpr int kSum = kSumTile + 2 * kColumn, kWeights = kWeightTile + kColumn;
    const bool both = act.rows > kTileMaxRows;
    alignas(64) std::byte b[kBlock / 2][kTileMaxBytes];
    for (int p = 0; p < kTileVectors; ++p) {
      for (int pair = 0; pair < kBlock / 2; ++pair) {
        const Vec::I w = Vec::load_i(data[kColumn * kTileVectors + p] + 32 * pair, stride);
        std::memcpy(b[pair] + p * sizeof(Vec::I), &w, sizeof(Vec::I));
      }
    }
    Tile::load<kWeights>(b, kTileMaxBytes);
    if (first) Tile::zero<kSum>();
    Tile::dot_bf16<kSum, kActTile, kWeights>();
    if (both && first) Tile::zero<kSum + 1>();
    if (both) Tile::dot_bf16<kSum + 1, kActTile + 1, kWeights>();
    if (!last) return;
    alignas(64) float values[kTileRows][kTileOutputs];
    Tile::store<kSum>(values, kTileMaxBytes);
    if (both) Tile::store<kSum + 1>(values + kTileMaxRows, kTileMaxBytes);
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
  Tile::configure(tile_config(args.a.rows, 2 * kBlock, 2));
  gemm_range<TiledBf16, 0, 2 * kTileVectors>(args);
  Tile::release();
}

// The integer formats whose products tiles make. Q6_K's halves have scales of their own: it stays
// with vectors.
template <class Format>
inline constexpr bool kTiledFormat = Format::kInteger && !std::is_same_v<Format, Q6_K>;
