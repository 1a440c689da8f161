// SPDX-License-Identifier: Apache-2.0
// What this CPU and operating system can run: CPUID, XGETBV and the AMX permission request. No
// dispatch here.
#pragma once

namespace kt {

struct CpuFeatures {
  bool avx2_fma_f16c;  // AVX2 + FMA + F16C, with YMM state enabled by the OS
  bool avx_vnni;       // … and vpdpbusd with a VEX prefix
  bool avx512;         // AVX2 and AVX-512 F + BW + DQ + VL, with mask and ZMM state enabled
  bool avx512_vnni;    // … and vpdpbusd
  bool avx512_bf16;    // … and VNNI and vdpbf16ps
  bool amx;            // … and TILE + INT8 + BF16, whose state the OS permits this process to use
};

const CpuFeatures& cpu_features();  // computed once, thread-safe

}  // namespace kt
