// SPDX-License-Identifier: Apache-2.0
// The private module kt_kvcache._core. Each bind_*.cpp registers one noun; what it does is defined
// by its Python twin.
#include "bindings.h"

NB_MODULE(_core, m) {
  // At interpreter exit a program's globals may still hold a store; that is no leak to report.
  nanobind::set_leak_warnings(false);
  m.doc() = "C++ core of kt_kvcache. Private: use kt_kvcache.";
  kt::kvcache::bind_hash(m);
  kt::kvcache::bind_mover(m);
  kt::kvcache::bind_copy(m);
  kt::kvcache::bind_pages(m);
}
