// SPDX-License-Identifier: Apache-2.0
// The kernels of the AMX target on emulated tiles and AVX2: proves them on machines without AMX.
// Slow; never chosen but by name.
#if defined(__x86_64__)

#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "simd/tile_config.h"
#include "targets/x86.h"

KT_REGION_BEGIN("avx2,fma,f16c")
namespace kt::amx_emu {
#include "simd/vec_avx2.h"
#include "simd/dot_maddubs.h"
#include "simd/tile_emu.h"
#include "kernels/element-inl.h"
#include "formats/formats-inl.h"
#include "kernels/gemm-inl.h"
inline const Kernels& lesser() { return avx2_kernels(); }
#include "kernels/tiles-inl.h"
}  // namespace kt::amx_emu
KT_REGION_END

namespace kt {

const Kernels& amx_emu_kernels() {
  static const Kernels table = [] {
    Kernels kernels = avx2_kernels();
    kernels.target = "amx_emu";
    kernels.gemm[static_cast<int>(Format::bf16)] = &amx_emu::gemm_tiled_bf16;
#define KT_ENTRY(name, Struct)                          \
  if constexpr (amx_emu::kTiledFormat<amx_emu::Struct>) \
    kernels.gemm[static_cast<int>(Format::name)] = &amx_emu::gemm_tiled<amx_emu::Struct>;
    KT_FORMATS(KT_ENTRY)
#undef KT_ENTRY
    return kernels;
  }();
  return table;
}

}  // namespace kt

#endif  // __x86_64__
