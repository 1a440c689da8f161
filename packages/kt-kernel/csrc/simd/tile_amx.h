// SPDX-License-Identifier: Apache-2.0
// `Tile` on AMX (TILE, INT8, BF16): one instruction each. tile_emu.h is the same for any machine.
// Textual, included inside a target's namespace.
//
// In assembly, because gcc 12's _tile_loadconfig names 8 of the 64 bytes it reads and _tile_loadd
// none: stores to the rest would be deleted. Here every operation that reads or writes memory says
// so, and all are volatile, which keeps them in order.

struct Tile {
  static void configure(const TileConfig& config) {
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  static void release() { __asm__ volatile("tilerelease"); }

  template <int kTile>
  static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  // Row r of the tile is at p + r * stride bytes.
  template <int kTile>
  static void load(const void* p, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(p), "r"(stride), "i"(kTile)
                     : "memory");
  }
  template <int kTile>
  static void store(void* p, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                     :
                     : "r"(p), "r"(stride), "i"(kTile)
                     : "memory");
  }
  // sum[m][n] += sum over k of a[m][k] * b[k / 4][n][k % 4], unsigned by signed bytes, int32.
  template <int kSum, int kA, int kB>
  static void dot_u8s8() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
  }
  // sum[m][n] += sum over k of a[m][k] * b[k / 2][n][k % 2], bf16, in float.
  template <int kSum, int kA, int kB>
  static void dot_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
  }
};
