// SPDX-License-Identifier: Apache-2.0
// `Tile` in portable code, after the pseudo-code of Intel's instruction set reference: what runs
// the tile kernels where there is no AMX. It aborts with the reason where silicon raises a fault.
// The state that AMX keeps in registers is per thread. Textual, included inside a target's
// namespace; tile_amx.h documents the operations. It cannot see what compilers do to real tile
// instructions.

struct Tile {
  static void configure(const TileConfig& config) {
    check(config.palette == 1 && config.start_row == 0, "#GP: palette or start row");
    for (const uint8_t byte : config.reserved) check(byte == 0, "#GP: reserved bytes");
    for (int tile = 0; tile < 16; ++tile) {
      const int rows = config.rows[tile], bytes = config.row_bytes[tile];
      check(rows <= kTileMaxRows && bytes <= kTileMaxBytes, "#GP: a tile too large");
      check((rows == 0) == (bytes == 0), "#GP: rows without bytes");
      check(tile < kTiles || rows == 0, "#GP: more than 8 tiles");
    }
    state().config = config;
    std::memset(state().tiles, 0, sizeof state().tiles);
  }
  static void release() { state() = {}; }

  template <int kTile>
  static void zero() {
    use(kTile);
    std::memset(state().tiles[kTile], 0, sizeof state().tiles[kTile]);
  }
  template <int kTile>
  static void load(const void* p, int64_t stride) {
    zero<kTile>();
    for (int row = 0; row < rows(kTile); ++row)
      std::memcpy(state().tiles[kTile][row], static_cast<const std::byte*>(p) + row * stride,
                  bytes(kTile));
  }
  template <int kTile>
  static void store(void* p, int64_t stride) {
    use(kTile);
    for (int row = 0; row < rows(kTile); ++row)
      std::memcpy(static_cast<std::byte*>(p) + row * stride, state().tiles[kTile][row],
                  bytes(kTile));
  }
  template <int kSum, int kA, int kB>
  static void dot_u8s8() {
    use_for_dot(kSum, kA, kB);
    for (int m = 0; m < rows(kSum); ++m) {
      int32_t sums[kTileMaxBytes / 4];
      std::memcpy(sums, state().tiles[kSum][m], sizeof sums);
      const auto* a = reinterpret_cast<const uint8_t*>(state().tiles[kA][m]);
      for (int k = 0; k < rows(kB); ++k) {
        const auto* b = reinterpret_cast<const int8_t*>(state().tiles[kB][k]);
        for (int n = 0; n < bytes(kSum) / 4; ++n)
          for (int i = 0; i < 4; ++i) sums[n] += a[4 * k + i] * b[4 * n + i];
      }
      std::memcpy(state().tiles[kSum][m], sums, sizeof sums);
    }
    zero_above(kSum);
  }
  template <int kSum, int kA, int kB>
  static void dot_bf16() {
    use_for_dot(kSum, kA, kB);
    for (int m = 0; m < rows(kSum); ++m) {
      float sums[kTileMaxBytes / 4], pairs[kTileMaxBytes / 4][2] = {};
      uint16_t a[kTileMaxBytes / 2], b[kTileMaxBytes / 2];
      std::memcpy(sums, state().tiles[kSum][m], sizeof sums);
      std::memcpy(a, state().tiles[kA][m], sizeof a);
      for (int k = 0; k < rows(kB); ++k) {
        std::memcpy(b, state().tiles[kB][k], sizeof b);
        for (int n = 0; n < bytes(kSum) / 4; ++n)
          for (int i = 0; i < 2; ++i)
            pairs[n][i] = flush(std::fma(flush(kt::bf16_to_float(a[2 * k + i])),
                                         flush(kt::bf16_to_float(b[2 * n + i])), pairs[n][i]));
      }
      for (int n = 0; n < bytes(kSum) / 4; ++n)
        sums[n] = flush(flush(sums[n]) + flush(pairs[n][0] + pairs[n][1]));
      std::memcpy(state().tiles[kSum][m], sums, sizeof sums);
    }
    zero_above(kSum);
  }

 private:
  struct State {
    TileConfig config{.palette = 0};  // 0: not configured
    std::byte tiles[kTiles][kTileMaxRows][kTileMaxBytes] = {};
  };
  static State& state() {
    static thread_local State state;
    return state;
  }
  static int rows(int tile) { return state().config.rows[tile]; }
  static int bytes(int tile) { return state().config.row_bytes[tile]; }

  static void check(bool holds, const char* fault) {
    if (holds) return;
    std::fprintf(stderr, "tile emulation: %s\n", fault);
    std::abort();
  }
  static void use(int tile) {
    check(state().config.palette == 1, "#UD: no configuration loaded");
    check(rows(tile) > 0, "#UD: a tile that is not configured");
  }
  static void use_for_dot(int sum, int a, int b) {
    for (const int tile : {sum, a, b}) {
      use(tile);
      check(bytes(tile) % 4 == 0, "#UD: rows of a broken word");
    }
    check(sum != a && sum != b && a != b, "#UD: the same tile twice");
    check(rows(sum) == rows(a) && bytes(sum) == bytes(b) && bytes(a) == 4 * rows(b),
          "#UD: shapes that do not fit");
  }
  // An instruction that writes a tile clears what lies beyond its rows and bytes.
  static void zero_above(int tile) {
    auto& bits = state().tiles[tile];
    for (int row = 0; row < kTileMaxRows; ++row)
      for (int i = row < rows(tile) ? bytes(tile) : 0; i < kTileMaxBytes; ++i)
        bits[row][i] = std::byte{0};
  }
  // Tile arithmetic takes and gives zeros for subnormals, whatever MXCSR says.
  static float flush(float x) {
    return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
  }
};
