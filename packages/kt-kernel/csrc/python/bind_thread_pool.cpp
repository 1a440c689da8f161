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
      .def(
          "__init__",
          [](ThreadPool* self, int num_threads, const std::vector<int>& cores,
             const std::string& root) {
            new (self) ThreadPool(num_threads, cores, read_topology(allowed_cpus(), root));
          },
          "num_threads"_a = 0, "cores"_a = std::vector<int>{}, "root"_a = "",
          "root: what stands before /proc and /sys.")
      .def_prop_ro("num_threads", &ThreadPool::num_threads)
      .def("op_counts", &ThreadPool::op_counts, "How often each op ran on this pool.");

  m.def("allowed_cpus", &allowed_cpus, "CPU ids this thread may use, ascending.");
  m.def(
      "usable_cores",
      [](const std::vector<int>& allowed, const std::string& root) {
        const Topology topology = read_topology(allowed, root);
        const int count = topology.usable_cores();
        std::vector<int> cpus;
        for (int i = 0; i < count; ++i) cpus.push_back(topology.home(i, count).cpus[0]);
        return cpus;
      },
      "allowed"_a, "root"_a = "",
      "One CPU id of each physical core that affinity and quota leave to a pool.");
}

}  // namespace kt::python
