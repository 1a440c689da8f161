// SPDX-License-Identifier: Apache-2.0
// What this CPU and operating system can run: CPUID, XGETBV and (later) the AMX permission request.
// No dispatch here.
#pragma once

namespace kt {

struct CpuFeatures {
  bool avx2_fma_f16c;  // AVX2 + FMA + F16C, with YMM state enabled by the OS
};

const CpuFeatures& cpu_features();  // computed once, thread-safe

}  // namespace kt
