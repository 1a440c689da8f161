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

void bind_dispatch(nb::module_& m) {
  m.def("available_targets", &available_targets, "Targets this machine can run, best first.");
  m.def("compiled_targets", &compiled_targets, "Targets this build contains, best first.");
  m.def("active_target", [] { return kernels().target; }, "Name of the target ops run on.");
  m.def("force_target", &force_target, "name"_a, "Run ops on the named target from now on.");
  m.def("kernel_owner", &kernel_owner, "target"_a, "kernel"_a,
        "The target whose code `target` runs as `kernel`; empty: none.");
  m.def("negate_kernel", &negate_kernel, "name"_a,
        "Fault injection: the named kernel negates what it writes; an empty name restores.");
  m.def(
      "kernel_names",
      [] {
#define KT_NAME(kernel, Args) #kernel,
        return std::vector<std::string>{KT_KERNELS(KT_NAME)};
#undef KT_NAME
      },
      "Entries of the kernel table.");
  m.def(
      "format_names",
      [] {
        std::vector<std::string> names;
        for (int i = 0; i < kNumFormats; ++i) names.emplace_back(name_of(static_cast<Format>(i)));
        return names;
      },
      "Weight formats.");
  m.def(
      "default_act_mode",
      [](const std::string& format) {
        switch (default_act_mode(format_from_name("default_act_mode", format.c_str()))) {
          case ActMode::f32:
            return "f32";
          case ActMode::bf16:
            return "bf16";
          case ActMode::int8_g32:
            return "int8_g32";
        }
        return "";
      },
      "format"_a, "How activations meet weights of this format: f32, bf16 or int8_g32.");
}

}  // namespace kt::python
