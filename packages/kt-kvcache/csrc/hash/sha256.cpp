// SPDX-License-Identifier: Apache-2.0
// Which paths there are, and which of them this CPU can take.
#include "sha256.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace kt::kvcache {
namespace {

bool always() { return true; }

#if defined(__x86_64__)
bool has_sha() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & bit_SHA) != 0;
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
}
#endif

}  // namespace

const std::vector<HashPath>& hash_paths() {
  static const std::vector<HashPath> paths = {
#if defined(__x86_64__)
      {"sha_ni", has_sha, sha_ni::hash},
      {"avx512", has_avx512, avx512::hash},
      {"avx2", has_avx2, avx2::hash},
#endif
      {"portable", always, portable::hash},
#if defined(__x86_64__)
      {"sha_ni_emulated", always, sha_ni_emulated::hash},
#endif
  };
  return paths;
}

}  // namespace kt::kvcache
