// SPDX-License-Identifier: Apache-2.0
// The AVX2 + FMA + F16C target. All standard headers come before the region: an inline function of
// theirs compiled with AVX2 could be the copy the linker keeps for everybody, and kill older
// machines with SIGILL.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <type_traits>

#include "kt/half.h"
#include "kt/kernels.h"
#include "kt/probe.h"
#include "targets/targets.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace kt::avx2 {
#include "simd/vec_avx2.h"
#include "kernels/kernels-inl.h"
#include "kernels/probe-inl.h"
#define KT_WIDTH "ymm"
#include "simd/peak_x86.h"
#undef KT_WIDTH
constexpr Probes kProbes = {&probe_read, kPeaks, std::size(kPeaks)};
}  // namespace kt::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

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
