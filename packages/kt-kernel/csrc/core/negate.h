// SPDX-License-Identifier: Apache-2.0
// Fault injection behind negate_kernel() (kt/dispatch.h): a table in which one kernel negates what
// it writes.
#pragma once

#include <string>

#include "kt/kernels.h"

namespace kt {

// A copy of `base` (which must outlive its use) with the named kernel replaced. False: no such
// kernel. One at a time.
bool negated_copy(const Kernels& base, const std::string& kernel, Kernels* copy);

}  // namespace kt
