// SPDX-License-Identifier: Apache-2.0
// The private module kt_kernel._core. Each bind_*.cpp registers one noun; the public API is
// src/kt_kernel/*.py.
#include "bindings.h"

NB_MODULE(_core, m) {
  // At interpreter exit a program's globals may still hold an engine; that is no leak to report.
  nanobind::set_leak_warnings(false);
  m.doc() = "C++ core of kt_kernel. Private: use kt_kernel.";
  kt::python::bind_dispatch(m);
  kt::python::bind_thread_pool(m);
  kt::python::bind_weights(m);
  kt::python::bind_moe(m);
  kt::python::bind_route(m);
  kt::python::bind_stream(m);
  kt::python::bind_probe(m);
}
