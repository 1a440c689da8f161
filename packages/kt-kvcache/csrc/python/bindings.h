// SPDX-License-Identifier: Apache-2.0
// What the bind_*.cpp files share: who registers what. Each binding checks its arguments, releases
// the GIL where it works on bytes, and makes one C++ call.
#pragma once

#include <nanobind/nanobind.h>

namespace kt::kvcache {

namespace nb = nanobind;

void bind_hash(nb::module_& m);   // RunHasher, hash_paths
void bind_mover(nb::module_& m);  // PageMover
void bind_copy(nb::module_& m);   // copy_pages
void bind_pages(nb::module_& m);  // CachedPages

}  // namespace kt::kvcache
