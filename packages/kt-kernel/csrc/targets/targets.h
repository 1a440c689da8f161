// SPDX-License-Identifier: Apache-2.0
// The kernel tables this build contains, one function per target. Choosing among them is
// csrc/core/dispatch.cpp.
#pragma once

#include "kt/kernels.h"

namespace kt {

const Kernels& scalar_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx_vnni_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_vnni_kernels();
const Kernels& avx512_bf16_kernels();
const Kernels& amx_kernels();
const Kernels& amx_emu_kernels();
#endif

}  // namespace kt
