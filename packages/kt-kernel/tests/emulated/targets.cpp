// SPDX-License-Identifier: Apache-2.0
// The targets of AVX-512, AVX-512 VNNI, AVX-512 BF16 and AVX-VNNI as AVX2 code, and a CPU that has
// them all. Linked before the package's own objects, whose definitions it replaces; not part of the
// package.
#include "avx512.h"  // first: it redefines what the sources name

#include "kt/isa.h"
#include "targets/avx512.cpp"
#include "targets/avx512_bf16.cpp"
#include "targets/avx512_vnni.cpp"
#include "targets/avx_vnni.cpp"

namespace kt {

const CpuFeatures& cpu_features() {
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("f16c");
  static const CpuFeatures features = {.avx2_fma_f16c = avx2,
                                       .avx_vnni = avx2,
                                       .avx512 = avx2,
                                       .avx512_vnni = avx2,
                                       .avx512_bf16 = avx2,
                                       .amx = false};
  return features;
}

}  // namespace kt
