// SPDX-License-Identifier: Apache-2.0
// The AVX-512 BF16 target (Cooper Lake, Zen 4 on): AVX-512 VNNI whose bf16 products are vdpbf16ps.
#if defined(__x86_64__)

#include "targets/x86.h"

KT_REGION_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")
namespace kt::avx512_bf16 {
#include "simd/vec_avx512.h"
inline __m512i dpbusd(__m512i sum, __m512i u, __m512i s) { return _mm512_dpbusd_epi32(sum, u, s); }
#include "simd/dot_dpbusd.h"
inline __m512 dpbf16(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
#include "kernels/element-inl.h"
#include "formats/formats-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/dot_bf16-inl.h"
}  // namespace kt::avx512_bf16
KT_REGION_END

namespace kt {

const Kernels& avx512_bf16_kernels() {
  static const Kernels table = [] {
    Kernels kernels = avx512_vnni_kernels();
    kernels.target = "avx512_bf16";
    kernels.gemm[static_cast<int>(Format::bf16)] = &avx512_bf16::gemm_dot_bf16;
    return kernels;
  }();
  return table;
}

}  // namespace kt

#endif  // __x86_64__
