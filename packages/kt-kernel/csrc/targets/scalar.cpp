// SPDX-License-Identifier: Apache-2.0
// The portable target: every kernel on compiler-made 8-lane vectors, no intrinsics. Not tuned; the
// oracle of the others.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kt/half.h"
#include "kt/kernels.h"
#include "kt/probe.h"
#include "targets/targets.h"

namespace kt::scalar {
#include "simd/vec_scalar.h"
#include "simd/dot_scalar.h"
#include "kernels/kernels-inl.h"
#include "kernels/probe-inl.h"
constexpr Probes kProbes = {&probe_read, nullptr, 0};  // no multiply worth measuring
}  // namespace kt::scalar

namespace kt {

const Kernels& scalar_kernels() {
  static constexpr Kernels table = {
      .target = "scalar",
#define KT_ENTRY(kernel, Args) .kernel = &scalar::kernel,
      KT_KERNELS(KT_ENTRY)
#undef KT_ENTRY
#define KT_ENTRY(name, Struct) &scalar::gemm_##name,
          .gemm = {KT_FORMATS(KT_ENTRY)},
#undef KT_ENTRY
#define KT_ENTRY(name, Struct) &scalar::pack_##name,
      .pack = {KT_FORMATS(KT_ENTRY)},
#undef KT_ENTRY
      .probes = &scalar::kProbes,
  };
  return table;
}

const FormatInfo& info(Format format) {
  static constexpr FormatInfo kInfos[] = {
#define KT_ENTRY(name, Struct) scalar::Struct::kInfo,
      KT_FORMATS(KT_ENTRY)
#undef KT_ENTRY
  };
  return kInfos[static_cast<int>(format)];
}

}  // namespace kt
