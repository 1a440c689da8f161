// SPDX-License-Identifier: Apache-2.0
// Binding of the copy from pages to pages.
#include <cstring>

#include "bindings.h"
#include "check.h"
#include "gil.h"
#include "views.h"

namespace kt::kvcache {
namespace {

void copy_pages(nb::sequence from_layers, nb::sequence from_ids, nb::sequence to_layers,
                nb::sequence to_ids) {
  const View from("copy_pages", from_layers, from_ids, false);
  const View to("copy_pages", to_layers, to_ids, true);
  require(from.page_ids.size() == to.page_ids.size(), "copy_pages",
          "both views must have as many pages", std::to_string(to.page_ids.size()));
  require(from.layers.size() == to.layers.size(), "copy_pages",
          "both views must have as many layers", std::to_string(to.layers.size()));
  for (size_t i = 0; i < from.layers.size(); ++i)
    require(from.layers[i].stride == to.layers[i].stride, "copy_pages",
            "both views must have the same strides", std::to_string(to.layers[i].stride));
  ReleasedGil released;
  for (size_t layer = 0; layer < from.layers.size(); ++layer) {
    const auto [source, stride] = from.layers[layer];
    std::byte* target = to.layers[layer].data;
    for (size_t i = 0; i < from.page_ids.size(); ++i)
      std::memmove(target + static_cast<size_t>(to.page_ids[i]) * stride,
                   source + static_cast<size_t>(from.page_ids[i]) * stride, stride);
  }
}

}  // namespace

void bind_copy(nb::module_& m) {
  m.def("copy_pages", copy_pages, nb::arg("from_layers"), nb::arg("from_ids"), nb::arg("to_layers"),
        nb::arg("to_ids"));
}

}  // namespace kt::kvcache
