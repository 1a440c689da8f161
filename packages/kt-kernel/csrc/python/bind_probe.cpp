// SPDX-License-Identifier: Apache-2.0
// Bindings of the probes: one sample per call. Repetition and statistics are kt_kernel/probe.py.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "kt/probe.h"

namespace kt::python {

using namespace nb::literals;

namespace {

// Keeps the pool alive as long as the buffer that it fills and reads.
class ReadHandle {
 public:
  ReadHandle(std::shared_ptr<ThreadPool> pool, size_t bytes)
      : pool_(std::move(pool)), probe_(*pool_, bytes) {}
  double seconds(int threads) const { return probe_.seconds(threads); }
  size_t nbytes() const { return probe_.bytes(); }

 private:
  std::shared_ptr<ThreadPool> pool_;
  ReadProbe probe_;
};

}  // namespace

void bind_probe(nb::module_& m) {
  using released = nb::call_guard<ReleasedGil>;
  nb::class_<ReadHandle>(m, "ReadProbe")
      .def(nb::init<std::shared_ptr<ThreadPool>, size_t>(), "pool"_a, "nbytes"_a, released())
      .def("seconds", &ReadHandle::seconds, "threads"_a, released(),
           "Time in which so many workers read the whole buffer once.")
      .def_prop_ro("nbytes", &ReadHandle::nbytes);
  m.def("peak_kinds", &peak_kinds, "Kinds of multiply that the active target can measure.");
  m.def("peak_ops", &peak_ops, "kind"_a, "Operations of one step on one worker.");
  m.def("peak_seconds", &peak_seconds, "pool"_a, "kind"_a, "threads"_a, "steps"_a, released(),
        "Time in which so many workers take `steps` steps each.");
}

}  // namespace kt::python
