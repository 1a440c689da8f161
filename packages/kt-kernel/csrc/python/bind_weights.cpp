// SPDX-License-Identifier: Apache-2.0
// Bindings of packed weights: Linear and Experts. Packing itself is csrc/core.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <optional>
#include <string>

#include "bindings.h"
#include "kt/check.h"
#include "kt/experts.h"

namespace kt::python {

using namespace nb::literals;

namespace {

Projection projection_from_name(const std::string& name) {
  if (name == "gate") return Projection::gate;
  if (name == "up") return Projection::up;
  if (name == "down") return Projection::down;
  fail("experts.put", "projection must be one of gate, up, down; got ", name);
}

void construct_linear(Linear* self, nb::handle weight, const std::string& dtype_name,
                      const std::string& format_name, int group_size, nb::handle bias,
                      const std::shared_ptr<ThreadPool>& pool) {
  const char* op = "linear.pack";
  const DType dtype = dtype_from_name(op, "dtype", dtype_name);
  const Format format = format_from_name(op, format_name.c_str());
  const Array w(op, "weight", weight, element_of(dtype), {"out_features", "in_features"});
  std::optional<Array> b;
  if (!bias.is_none())
    b.emplace(op, "bias", bias, Element::float32, std::initializer_list<Axis>{w.dim(0)});
  const ReleasedGil released;
  new (self) Linear(w.read(), dtype, w.dim(0), w.dim(1), format, group_size,
                    b ? b->read<float>() : nullptr, pool.get());
}

void put(Experts& self, int expert, const std::string& projection_name, nb::handle weight,
         const std::string& dtype_name) {
  const char* op = "experts.put";
  const Projection projection = projection_from_name(projection_name);
  const DType dtype = dtype_from_name(op, "dtype", dtype_name);
  const bool down = projection == Projection::down;
  const Array w(op, "weight", weight, element_of(dtype),
                {down ? self.hidden_size() : self.intermediate_size(),
                 down ? self.intermediate_size() : self.hidden_size()});
  const ReleasedGil released;
  self.put(expert, projection, w.read(), dtype, w.dim(0), w.dim(1));
}

}  // namespace

void bind_weights(nb::module_& m) {
  nb::class_<Linear>(m, "Linear")
      .def("__init__", &construct_linear, "weight"_a.none(), "dtype"_a, "format"_a, "group_size"_a,
           "bias"_a.none() = nb::none(), "pool"_a.none() = nb::none(),
           "Pack weight (out_features, in_features); bias (out_features,) float32.")
      .def_prop_ro("out_features", [](const Linear& self) { return self.matrix().n; })
      .def_prop_ro("in_features", [](const Linear& self) { return self.matrix().k; })
      .def_prop_ro("format", [](const Linear& self) { return name_of(self.matrix().format); })
      .def_prop_ro("group_size", [](const Linear& self) { return self.matrix().group_size; })
      .def_prop_ro("nbytes", &Linear::nbytes);

  nb::class_<Experts>(m, "Experts")
      .def(
          "__init__",
          [](Experts* self, int num_experts, int hidden_size, int intermediate_size,
             const std::string& gate, const std::string& up, const std::string& down,
             int group_size) {
            const auto format = [](const std::string& name) {
              return format_from_name("experts", name.c_str());
            };
            new (self) Experts(num_experts, hidden_size, intermediate_size, format(gate),
                               format(up), format(down), group_size);
          },
          "num_experts"_a, "hidden_size"_a, "intermediate_size"_a, "gate"_a, "up"_a, "down"_a,
          "group_size"_a)
      .def("put", &put, "expert"_a, "projection"_a, "weight"_a.none(), "dtype"_a,
           "Pack one projection of one expert: gate, up (intermediate, hidden); down (hidden, "
           "intermediate).")
      .def_prop_ro("complete", &Experts::complete)
      .def_prop_ro("num_experts", &Experts::num_experts)
      .def_prop_ro("hidden_size", &Experts::hidden_size)
      .def_prop_ro("intermediate_size", &Experts::intermediate_size)
      .def_prop_ro("nbytes", &Experts::nbytes);
}

}  // namespace kt::python
