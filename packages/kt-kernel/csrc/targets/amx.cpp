// SPDX-License-Identifier: Apache-2.0
// The AMX target (Sapphire Rapids on): tiles for many rows, AVX-512 BF16 for what else there is.
#if defined(__x86_64__)

#include "simd/tile_config.h"
#include "targets/x86.h"

KT_REGION_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
namespace kt::amx {
#include "simd/vec_avx512.h"
#include "simd/dot_maddubs.h"
#include "simd/tile_amx.h"
#include "kernels/element-inl.h"
#include "formats/formats-inl.h"
#include "kernels/gemm-inl.h"
inline const Kernels& lesser() { return avx512_bf16_kernels(); }
#include "kernels/tiles-inl.h"
}  // namespace kt::amx
KT_REGION_END

namespace kt {

const Kernels& amx_kernels() {
  static const Kernels table = [] {
    Kernels kernels = avx512_bf16_kernels();
    kernels.target = "amx";
    kernels.gemm[static_cast<int>(Format::bf16)] = &amx::gemm_tiled_bf16;
#define KT_ENTRY(name, Struct)                  \
  if constexpr (amx::kTiledFormat<amx::Struct>) \
    kernels.gemm[static_cast<int>(Format::name)] = &amx::gemm_tiled<amx::Struct>;
    KT_FORMATS(KT_ENTRY)
#undef KT_ENTRY
    return kernels;
  }();
  return table;
}

}  // namespace kt

#endif  // __x86_64__
