// SPDX-License-Identifier: Apache-2.0
// The AVX-512 target (F, BW, DQ, VL: Skylake-X on): matrix products on two panels per vector, and
// attention. Other kernels are AVX2's.
#if defined(__x86_64__)

#include "targets/x86.h"

KT_REGION_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
namespace kt::avx512 {
#include "simd/vec_avx512.h"
#include "simd/dot_maddubs.h"
#include "kernels/element-inl.h"
#include "formats/formats-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/vectors-inl.h"
#include "kernels/kv-inl.h"
#include "kernels/attention-tile-inl.h"
#include "kernels/attention-inl.h"
#include "kernels/probe-inl.h"
#define KT_WIDTH "zmm"
#include "simd/peak_x86.h"
}  // namespace kt::avx512
KT_REGION_END

namespace kt {

const Kernels& avx512_kernels() {
  static const Kernels table = [] {
    Kernels kernels = avx2_kernels();
    kernels.target = "avx512";
#define KT_ENTRY(name, Struct) kernels.gemm[static_cast<int>(Format::name)] = &avx512::gemm_##name;
    KT_FORMATS(KT_ENTRY)
#undef KT_ENTRY
    kernels.attention = &avx512::attention;
    kernels.merge_attention = &avx512::merge_attention;
    kernels.probes = &avx512::kProbes;
    return kernels;
  }();
  return table;
}

}  // namespace kt

#endif  // __x86_64__
