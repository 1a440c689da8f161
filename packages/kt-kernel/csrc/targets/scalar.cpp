// SPDX-License-Identifier: Apache-2.0
// The portable target: every kernel on compiler-made 8-lane vectors, no intrinsics. Not tuned; the
// oracle of the others.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kt/half.h"
#include "kt/kernels.h"
#include "targets/targets.h"

namespace kt::scalar {
#include "simd/vec_scalar.h"
#include "kernels/kernels-inl.h"
}  // namespace kt::scalar

namespace kt {

const Kernels& scalar_kernels() {
  static constexpr Kernels table = {"scalar",
#define KT_ENTRY(kernel, Args) &scalar::kernel,
                                    KT_KERNELS(KT_ENTRY)
#undef KT_ENTRY
  };
  return table;
}

}  // namespace kt
