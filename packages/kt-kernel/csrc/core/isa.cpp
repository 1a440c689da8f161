// SPDX-License-Identifier: Apache-2.0
// CPUID and XGETBV: an instruction set counts only if the operating system saves its registers.
#include "kt/isa.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace kt {
namespace {

#if defined(__x86_64__)
uint64_t enabled_state() {  // XCR0; callers have checked OSXSAVE
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Tile registers are 8 KiB that the kernel saves only for processes which asked
// (Documentation/arch/x86/xstate.rst). Holds for all threads, and for children without exec.
bool tiles_permitted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

constexpr bool has(uint64_t bits, uint64_t needed) { return (bits & needed) == needed; }

CpuFeatures detect() {
  CpuFeatures features{};
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(1, 0, &eax, &ebx, &ecx, &edx)) return features;
  constexpr unsigned kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;
  if (!has(ecx, kFma | kOsxsave | kAvx | kF16c)) return features;
  const uint64_t state = enabled_state();
  constexpr uint64_t kXmmYmm = 0x6, kMaskZmm = 0xe0, kTiles = 0x60000;
  if (!has(state, kXmmYmm) || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return features;
  constexpr unsigned kAvx2 = 1u << 5;                                      // ebx
  constexpr unsigned kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  constexpr unsigned kAvx512Vnni = 1u << 11;                               // ecx
  constexpr unsigned kAmx = 1u << 22 | 1u << 24 | 1u << 25;                // edx
  const unsigned ebx0 = ebx, ecx0 = ecx, edx0 = edx;
  unsigned eax1 = 0;
  if (eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) eax1 = eax;
  constexpr unsigned kAvxVnni = 1u << 4, kAvx512Bf16 = 1u << 5;  // eax of subleaf 1

  features.avx2_fma_f16c = has(ebx0, kAvx2);
  features.avx_vnni = features.avx2_fma_f16c && has(eax1, kAvxVnni);
  features.avx512 = features.avx2_fma_f16c && has(ebx0, kAvx512) && has(state, kMaskZmm);
  features.avx512_vnni = features.avx512 && has(ecx0, kAvx512Vnni);
  features.avx512_bf16 = features.avx512_vnni && has(eax1, kAvx512Bf16);
  features.amx = features.avx512_bf16 && has(edx0, kAmx) && has(state, kTiles) && tiles_permitted();
  return features;
}
#else
CpuFeatures detect() { return {}; }
#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace kt
