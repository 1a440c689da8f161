// SPDX-License-Identifier: Apache-2.0
// Chooses the kernel table: once, by CPU features, or by name. The active table is the one
// process-wide setting of this library, because a CPU is one per process; ops read it when they
// start, so force_target() between calls
// is safe; an op that runs meanwhile may use both tables.
#pragma once

#include <string>
#include <vector>

#include "kt/kernels.h"

namespace kt {

const Kernels& kernels();  // the active table
std::vector<std::string>
available_targets();  // best first, emulated last; what this machine can run
std::vector<std::string> compiled_targets();  // best first; what this build contains
void force_target(const std::string& name);   // throws invalid_argument listing available_targets()

// The target whose code `target` runs as `kernel`: itself, the lesser one that it has the kernel
// from, or empty where it has none. Throws on names that are not compiled in.
std::string kernel_owner(const std::string& target, const std::string& kernel);

// Entries of a kernel table: one per op, and gemm_<format> and pack_<format> of every format.
std::vector<std::string> kernel_names();

// Fault injection for tests of tests: while set, the named kernel of every target negates what it
// writes. Proves that a result really came through that kernel. Empty name restores. Throws on an
// unknown name.
void negate_kernel(const std::string& kernel);

}  // namespace kt
