// SPDX-License-Identifier: Apache-2.0
// Bindings of ThreadPool. Its jobs never touch Python, so it may be destroyed with the GIL held.
#include <nanobind/stl/map.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace kt::python {

using namespace nb::literals;

void bind_thread_pool(nb::module_& m) {
  nb::class_<ThreadPool>(m, "ThreadPool")
      .def(nb::init<int, std::vector<int>>(), "num_threads"_a = 0, "cores"_a = std::vector<int>{})
      .def_prop_ro("num_threads", &ThreadPool::num_threads)
      .def("op_counts", &ThreadPool::op_counts, "How often each op ran on this pool.");
}

}  // namespace kt::python
