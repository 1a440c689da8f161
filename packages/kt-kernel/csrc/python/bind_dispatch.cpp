// SPDX-License-Identifier: Apache-2.0
// Bindings of the process-wide facts: targets, kernels, formats. No objects here.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "kt/dispatch.h"
#include "kt/formats.h"

namespace kt::python {

using namespace nb::literals;

namespace {

const char* name_of(ActMode mode) {
  switch (mode) {
    case ActMode::f32:
      return "f32";
    case ActMode::bf16:
      return "bf16";
    case ActMode::int8_g32:
      return "int8_g32";
  }
  return "";
}

nb::list formats() {
  nb::list all;
  for (int i = 0; i < kNumFormats; ++i) {
    const FormatInfo& facts = info(static_cast<Format>(i));
    nb::dict row;
    row["name"] = facts.name;
    row["activation_mode"] = name_of(facts.act_mode);
    row["value_bits"] = facts.data_bytes * 8.0 / (kBlock * kPanelRows);
    row["header_bits"] = facts.header_bytes * 8.0 / kPanelRows;  // per row and group
    row["group"] = facts.group;
    row["takes_floats"] = facts.takes_floats;
    row["source_k"] = facts.source_k;
    row["source_bytes"] = facts.source_bytes;
    row["weight_error"] = facts.weight_error;
    row["layout"] = facts.layout;
    all.append(row);
  }
  return all;
}

}  // namespace

void bind_dispatch(nb::module_& m) {
  m.def("available_targets", &available_targets, "Targets this machine can run, best first.");
  m.def("compiled_targets", &compiled_targets, "Targets this build contains, best first.");
  m.def("active_target", [] { return kernels().target; }, "Name of the target ops run on.");
  m.def("force_target", &force_target, "name"_a, "Run ops on the named target from now on.");
  m.def("kernel_owner", &kernel_owner, "target"_a, "kernel"_a,
        "The target whose code `target` runs as `kernel`; empty: none.");
  m.def("negate_kernel", &negate_kernel, "name"_a,
        "Fault injection: the named kernel negates what it writes; an empty name restores.");
  m.def("kernel_names", &kernel_names, "Entries of the kernel table.");
  m.def("formats", &formats, "The facts of every weight format, in the order of the registry.");
}

}  // namespace kt::python
