// SPDX-License-Identifier: Apache-2.0
// Bindings of packed weights: Linear and Experts. Packing itself is csrc/core and csrc/formats.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "kt/check.h"
#include "kt/experts.h"
#include "kt/rounding.h"

namespace kt::python {

using namespace nb::literals;

namespace {

// What Python calls weights that are already quantised, in place of a dtype.
constexpr const char* kQuantized = "quantized";

Projection projection_from_name(const char* op, const std::string& name) {
  if (name == "gate") return Projection::gate;
  if (name == "up") return Projection::up;
  if (name == "down") return Projection::down;
  fail(op, "projection must be one of gate, up, down; got ", name);
}

// The arrays of one weight matrix, checked against the format that they are for.
class SourceArrays {
 public:
  // n, k: the shape, or -1 where the weight decides.
  SourceArrays(const char* op, nb::handle weight, const std::string& dtype_name, nb::handle scales,
               nb::handle zeros, Format format, int n, int k, int group_size)
      : quantized_(dtype_name == kQuantized) {
    const FormatInfo& facts = info(format);
    const Axis rows = n < 0 ? Axis("out_features") : Axis(n);
    if (!quantized_) {
      source_.dtype = dtype_from_name(op, "dtype", dtype_name);
      KT_CHECK(op, facts.takes_floats, facts.name, " must be given its own bytes as uint8; got ",
               dtype_name);
      weight_.emplace(op, "weight", weight, element_of(source_.dtype),
                      std::initializer_list<Axis>{rows, k < 0 ? Axis("in_features") : Axis(k)});
      n_ = weight_->dim(0);
      k_ = weight_->dim(1);
    } else {
      KT_CHECK(op, facts.source_k > 0, facts.name,
               " must be given floats (float32, bf16, f16); got integers");
      KT_CHECK(op, k < 0 || k % facts.source_k == 0, "in_features of ", facts.name,
               " must be a multiple of ", facts.source_k, "; got ", k);
      weight_.emplace(op, "weight", weight, Element::uint8,
                      std::initializer_list<Axis>{
                          rows, k < 0 ? Axis("row_bytes")
                                      : Axis(int64_t{k} / facts.source_k * facts.source_bytes)});
      n_ = weight_->dim(0);
      k_ = source_columns(op, facts, weight_->dim(1));
      take_scales(op, facts, scales, zeros, group_size);
    }
    KT_CHECK(op, quantized_ || (scales.is_none() && zeros.is_none()),
             "scales and zeros must be None with float weights; got some");
    source_.weight = weight_->read();
    source_.quantized = quantized_;
  }

  const Source& source() const { return source_; }
  int n() const { return n_; }
  int k() const { return k_; }

 private:
  void take_scales(const char* op, const FormatInfo& facts, nb::handle scales, nb::handle zeros,
                   int group_size) {
    const int group = facts.group == kChosenGroup ? (group_size ? group_size : k_) : facts.group;
    const auto need = [&](const char* name, nb::handle given, bool wanted) {
      KT_CHECK(op, given.is_none() != wanted, name,
               wanted ? " must be given for " : " must be None for ", facts.name, "; got ",
               wanted ? "None" : "some");
      return wanted;
    };
    if (need("scales", scales, facts.source_scales != SourceScales::none)) {
      const bool exponent = facts.source_scales == SourceScales::exponent;
      const bool tile = facts.source_scales == SourceScales::tile;
      scales_.emplace(
          op, "scales", scales, exponent ? Element::uint8 : Element::float32,
          std::initializer_list<Axis>{tile ? ceil_div(n_, group) : n_, ceil_div(k_, group)});
      source_.scales = scales_->read();
    }
    if (need("zeros", zeros, facts.source_zeros)) {
      zeros_.emplace(op, "zeros", zeros, Element::uint8,
                     std::initializer_list<Axis>{n_, ceil_div(k_, group)});
      source_.zeros = zeros_->read<uint8_t>();
    }
  }

  bool quantized_;
  Source source_;
  std::optional<Array> weight_, scales_, zeros_;
  int n_ = 0, k_ = 0;
};

void construct_linear(Linear* self, nb::handle weight, const std::string& dtype_name,
                      nb::handle scales, nb::handle zeros, const std::string& format_name,
                      int group_size, nb::handle bias, const std::shared_ptr<ThreadPool>& pool) {
  const char* op = "linear.pack";
  const Format format = format_from_name(op, format_name.c_str());
  const SourceArrays w(op, weight, dtype_name, scales, zeros, format, -1, -1, group_size);
  std::optional<Array> b;
  if (!bias.is_none())
    b.emplace(op, "bias", bias, Element::float32, std::initializer_list<Axis>{w.n()});
  const ReleasedGil released;
  new (self) Linear(w.source(), w.n(), w.k(), format, group_size, b ? b->read<float>() : nullptr,
                    pool.get());
}

void put(Experts& self, int expert, const std::string& projection_name, nb::handle weight,
         const std::string& dtype_name, nb::handle scales, nb::handle zeros) {
  const char* op = "experts.put";
  const Projection projection = projection_from_name(op, projection_name);
  const bool down = projection == Projection::down;
  const SourceArrays w(op, weight, dtype_name, scales, zeros, self.format(projection),
                       down ? self.hidden_size() : self.intermediate_size(),
                       down ? self.intermediate_size() : self.hidden_size(), self.group_size());
  const ReleasedGil released;
  self.put(expert, projection, w.source());
}

void put_all(Experts& self, const std::string& projection_name, nb::handle weights,
             const std::string& dtype_name, const std::shared_ptr<ThreadPool>& pool) {
  const char* op = "experts.put_all";
  const Projection projection = projection_from_name(op, projection_name);
  const bool down = projection == Projection::down;
  const int64_t rows =
      int64_t{self.num_experts()} * (down ? self.hidden_size() : self.intermediate_size());
  KT_CHECK(op, rows <= kMaxExtent, "rows of all experts must be at most ", kMaxExtent, "; got ",
           rows);
  const SourceArrays w(op, weights, dtype_name, nb::none(), nb::none(), self.format(projection),
                       static_cast<int>(rows), down ? self.intermediate_size() : self.hidden_size(),
                       self.group_size());
  const ReleasedGil released;
  self.put_all(projection, w.source(), *pool);
}

void put_bias(Experts& self, const std::string& projection_name, nb::handle bias) {
  const char* op = "experts.put_bias";
  const Projection projection = projection_from_name(op, projection_name);
  const bool down = projection == Projection::down;
  const Array b(op, "bias", bias, Element::float32,
                {self.num_experts(), down ? self.hidden_size() : self.intermediate_size()});
  self.put_bias(projection, b.read<float>());
}

std::optional<Format> optional_format(const char* op, const std::optional<std::string>& name) {
  return name ? std::optional(format_from_name(op, name->c_str())) : std::nullopt;
}

void construct_experts(Experts* self, int num_experts, int hidden_size, int intermediate_size,
                       const std::optional<std::string>& gate, const std::string& up,
                       const std::string& down, int group_size) {
  const char* op = "experts";
  new (self)
      Experts(num_experts, hidden_size, intermediate_size, optional_format(op, gate),
              format_from_name(op, up.c_str()), format_from_name(op, down.c_str()), group_size);
}

std::shared_ptr<Experts> experts_from_file(int num_experts, int hidden_size, int intermediate_size,
                                           const std::optional<std::string>& gate,
                                           const std::string& up, const std::string& down,
                                           int group_size, int fd, size_t offset, size_t nbytes,
                                           bool copy, const std::shared_ptr<ThreadPool>& pool) {
  const char* op = "experts.load";
  const auto gate_format = optional_format(op, gate);
  const Format up_format = format_from_name(op, up.c_str());
  const Format down_format = format_from_name(op, down.c_str());
  const ReleasedGil released;
  return std::make_shared<Experts>(num_experts, hidden_size, intermediate_size, gate_format,
                                   up_format, down_format, group_size,
                                   FileRange{fd, offset, nbytes}, copy, pool.get());
}

std::pair<int64_t, int64_t> bundles(const Experts& self, const std::string& projection_name) {
  const PackedMatrix matrix = self.matrix(0, projection_from_name("experts", projection_name));
  return {matrix.n_padded / kBundleRows, matrix.bundle_bytes};
}

const char* format_name(const Experts& self, const std::string& projection_name) {
  return info(self.format(projection_from_name("experts", projection_name))).name;
}

auto packed(nb::handle self) {
  const Experts& experts = nb::cast<const Experts&>(self);
  return nb::ndarray<nb::numpy, const uint8_t>(experts.packed(), {experts.nbytes()}, self);
}

// A copy: put_bias may replace the original at any time.
auto bias(const Experts& self, const std::string& projection_name) {
  using Floats = nb::ndarray<nb::numpy, const float>;
  const Projection projection = projection_from_name("experts", projection_name);
  const float* const from = self.bias(0, projection);
  if (from == nullptr) return std::optional<Floats>();
  const size_t experts = self.num_experts(), n = self.matrix(0, projection).n;
  auto copy = std::make_unique<std::vector<float>>(from, from + experts * n);
  const nb::capsule owner(copy.get(),
                          [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
  return std::optional(Floats(copy.release()->data(), {experts, n}, owner));
}

}  // namespace

int source_columns(const char* op, const FormatInfo& facts, int row_bytes) {
  KT_CHECK(op, row_bytes % facts.source_bytes == 0, "rows of ", facts.name,
           " must be a multiple of ", facts.source_bytes, " bytes; got ", row_bytes);
  const int64_t columns = int64_t{row_bytes} / facts.source_bytes * facts.source_k;
  KT_CHECK(op, columns <= kMaxExtent, "weight must have at most ", kMaxExtent, " columns; got ",
           columns);
  return static_cast<int>(columns);
}

void bind_weights(nb::module_& m) {
  m.attr("LAYOUT_VERSION") = kLayoutVersion;

  nb::class_<Linear>(m, "Linear")
      .def("__init__", &construct_linear, "weight"_a.none(), "dtype"_a, "scales"_a.none(),
           "zeros"_a.none(), "format"_a, "group_size"_a, "bias"_a.none() = nb::none(),
           "pool"_a.none() = nb::none(),
           "Pack weight (out_features, in_features); bias (out_features,) float32.")
      .def_prop_ro("out_features", [](const Linear& self) { return self.matrix().n; })
      .def_prop_ro("in_features", [](const Linear& self) { return self.matrix().k; })
      .def_prop_ro("format", [](const Linear& self) { return info(self.matrix().format).name; })
      .def_prop_ro("group_size", [](const Linear& self) { return self.matrix().group_size; })
      .def_prop_ro("nbytes", &Linear::nbytes);

  nb::class_<Experts>(m, "Experts")
      .def("__init__", &construct_experts, "num_experts"_a, "hidden_size"_a, "intermediate_size"_a,
           "gate"_a.none(), "up"_a, "down"_a, "group_size"_a)
      .def_static("from_file", &experts_from_file, "num_experts"_a, "hidden_size"_a,
                  "intermediate_size"_a, "gate"_a.none(), "up"_a, "down"_a, "group_size"_a, "fd"_a,
                  "offset"_a, "nbytes"_a, "copy"_a, "pool"_a.none(),
                  "Experts whose packed bytes are these of an open file, mapped or copied.")
      .def("put", &put, "expert"_a, "projection"_a, "weight"_a.none(), "dtype"_a, "scales"_a.none(),
           "zeros"_a.none(),
           "Pack one projection of one expert: gate, up (intermediate, hidden); down (hidden, "
           "intermediate).")
      .def("put_all", &put_all, "projection"_a, "weights"_a.none(), "dtype"_a, "pool"_a,
           "Pack one projection of all experts, whose rows follow each other.")
      .def("put_bias", &put_bias, "projection"_a, "bias"_a.none(),
           "The biases of one projection, (num_experts, outputs) float32.")
      .def_prop_ro("complete", &Experts::complete)
      .def("bundles", &bundles, "projection"_a, "Bundles of one matrix and the bytes of one.")
      .def("format", &format_name, "projection"_a)
      .def("bias", &bias, "projection"_a, "A copy (num_experts, outputs), or None.")
      .def_prop_ro("packed", &packed)
      .def_prop_ro("gated", &Experts::gated)
      .def_prop_ro("num_experts", &Experts::num_experts)
      .def_prop_ro("hidden_size", &Experts::hidden_size)
      .def_prop_ro("intermediate_size", &Experts::intermediate_size)
      .def_prop_ro("group_size", &Experts::group_size)
      .def_prop_ro("nbytes", &Experts::nbytes);
}

}  // namespace kt::python
