// SPDX-License-Identifier: Apache-2.0
// CPUID and XGETBV: an instruction set counts only if the operating system saves its registers.
#include "kt/isa.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace kt {
namespace {

#if defined(__x86_64__)
uint64_t enabled_state() {  // XCR0; callers have checked OSXSAVE
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

CpuFeatures detect() {
  CpuFeatures features{};
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(1, 0, &eax, &ebx, &ecx, &edx)) return features;
  constexpr unsigned kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;
  constexpr unsigned kNeeded = kFma | kOsxsave | kAvx | kF16c;
  if ((ecx & kNeeded) != kNeeded) return features;
  constexpr uint64_t kXmmYmm = 0x6;
  if ((enabled_state() & kXmmYmm) != kXmmYmm) return features;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return features;
  constexpr unsigned kAvx2 = 1u << 5;
  features.avx2_fma_f16c = (ebx & kAvx2) != 0;
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
