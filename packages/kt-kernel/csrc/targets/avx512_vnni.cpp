// SPDX-License-Identifier: Apache-2.0
// The AVX-512 VNNI target (Cascade Lake on): AVX-512 whose integer products are vpdpbusd.
#if defined(__x86_64__)

#include "targets/x86.h"

KT_REGION_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
namespace kt::avx512_vnni {
#include "simd/vec_avx512.h"
inline __m512i dpbusd(__m512i sum, __m512i u, __m512i s) { return _mm512_dpbusd_epi32(sum, u, s); }
#include "simd/dot_dpbusd.h"
#include "kernels/element-inl.h"
#include "formats/formats-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/probe-inl.h"
#define KT_WIDTH "zmm"
#define KT_DPBUSD "vpdpbusd"
#include "simd/peak_x86.h"
}  // namespace kt::avx512_vnni
KT_REGION_END

namespace kt {

const Kernels& avx512_vnni_kernels() {
  static const Kernels table = [] {
    Kernels kernels = avx512_kernels();
    kernels.target = "avx512_vnni";
#define KT_ENTRY(name, Struct)                                                 \
  if constexpr (avx512_vnni::Struct::kInteger || Format::name == Format::bf16) \
    kernels.gemm[static_cast<int>(Format::name)] = &avx512_vnni::gemm_##name;
    KT_FORMATS(KT_ENTRY)
#undef KT_ENTRY
    kernels.probes = &avx512_vnni::kProbes;
    return kernels;
  }();
  return table;
}

}  // namespace kt

#endif  // __x86_64__
