// SPDX-License-Identifier: Apache-2.0
// The AVX-VNNI target: AVX2 with vpdpbusd, for CPUs without AVX-512. Other kernels are AVX2's.
#if defined(__x86_64__)

#include "targets/x86.h"

KT_REGION_BEGIN("avx2,fma,f16c,avxvnni")
namespace kt::avx_vnni {
#include "simd/vec_avx2.h"
inline __m256i dpbusd(__m256i sum, __m256i u, __m256i s) {
  return _mm256_dpbusd_avx_epi32(sum, u, s);
}
#include "simd/dot_dpbusd.h"
#include "kernels/element-inl.h"
#include "formats/formats-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/probe-inl.h"
#define KT_WIDTH "ymm"
#define KT_DPBUSD "%{vex%} vpdpbusd"
#include "simd/peak_x86.h"
}  // namespace kt::avx_vnni
KT_REGION_END

namespace kt {

const Kernels& avx_vnni_kernels() {
  static const Kernels table = [] {
    Kernels kernels = avx2_kernels();
    kernels.target = "avx_vnni";
#define KT_ENTRY(name, Struct)                                              \
  if constexpr (avx_vnni::Struct::kInteger || Format::name == Format::bf16) \
    kernels.gemm[static_cast<int>(Format::name)] = &avx_vnni::gemm_##name;
    KT_FORMATS(KT_ENTRY)
#undef KT_ENTRY
    kernels.probes = &avx_vnni::kProbes;
    return kernels;
  }();
  return table;
}

}  // namespace kt

#endif  // __x86_64__
