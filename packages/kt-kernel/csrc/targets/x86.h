// SPDX-License-Identifier: Apache-2.0
// What every x86 target file opens with: all headers its kernels need, before the compiler region
// in which the target's code stands. An inline function of a standard header compiled inside it
// could be the copy that the linker keeps for everybody, and kill older machines with SIGILL.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <type_traits>
#include <utility>

#include "kt/half.h"
#include "kt/kernels.h"
#include "kt/probe.h"
#include "targets/targets.h"

// KT_REGION_BEGIN("avx2,fma") … KT_REGION_END: functions between them may use these features. With
// KT_EMULATED, for tests, intrinsics are functions of the features given on the command line.
#define KT_PRAGMA(text) _Pragma(#text)
#if defined(KT_EMULATED)
#define KT_REGION_BEGIN(features)
#define KT_REGION_END
#elif defined(__clang__)
#define KT_REGION_BEGIN(features) \
  KT_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define KT_REGION_END KT_PRAGMA(clang attribute pop)
#else
#define KT_REGION_BEGIN(features) KT_PRAGMA(GCC push_options) KT_PRAGMA(GCC target(features))
#define KT_REGION_END KT_PRAGMA(GCC pop_options)
#endif
