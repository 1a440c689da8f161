// SPDX-License-Identifier: Apache-2.0
// The AVX2 + FMA + F16C target.
#if defined(__x86_64__)

#include "targets/x86.h"

KT_REGION_BEGIN("avx2,fma,f16c")
namespace kt::avx2 {
#include "simd/vec_avx2.h"
#include "simd/dot_maddubs.h"
#include "kernels/kernels-inl.h"
#include "kernels/probe-inl.h"
#define KT_WIDTH "ymm"
#include "simd/peak_x86.h"
}  // namespace kt::avx2
KT_REGION_END

namespace kt {

const Kernels& avx2_kernels() {
  static constexpr Kernels table = {
      .target = "avx2",
#define KT_ENTRY(kernel, Args) .kernel = &avx2::kernel,
      KT_KERNELS(KT_ENTRY)
#undef KT_ENTRY
#define KT_ENTRY(name, Struct) &avx2::gemm_##name,
          .gemm = {KT_FORMATS(KT_ENTRY)},
#undef KT_ENTRY
#define KT_ENTRY(name, Struct) &avx2::pack_##name,
      .pack = {KT_FORMATS(KT_ENTRY)},
#undef KT_ENTRY
      .probes = &avx2::kProbes,
  };
  return table;
}

}  // namespace kt

#endif  // __x86_64__
