// SPDX-License-Identifier: Apache-2.0
// What xxhash.h includes, so that it includes nothing more inside the namespace and target region
// of a path; its functions then are that path's own.
#pragma once

#include <assert.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define XXH_INLINE_ALL
#define XXH_NO_EXTERNC_GUARD  // the namespace is part of its symbols
