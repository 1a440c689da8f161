// SPDX-License-Identifier: Apache-2.0
// How many threads this process may usefully run: Linux CPU lists and control groups. No threads
// here.
#pragma once

#include <vector>

namespace kt {

std::vector<int> allowed_cpus();  // by CPU affinity, ascending
// Physical cores within the affinity mask, limited by the control group's quota (v1 or v2); at
// least 1.
int usable_cores();

}  // namespace kt
