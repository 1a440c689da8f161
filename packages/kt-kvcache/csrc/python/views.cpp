// SPDX-License-Identifier: Apache-2.0
// The checks that views.h promises.
#include "views.h"

#include <algorithm>
#include <limits>

#include "check.h"

namespace kt::kvcache {
namespace {

using Rows = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using WritableRows = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

}  // namespace

View::View(const char* op, nb::sequence layer_buffers, nb::sequence ids, bool writable) {
  int64_t num_pages = std::numeric_limits<int64_t>::max();
  for (nb::handle buffer : layer_buffers) {
    Rows rows;
    require(nb::try_cast(buffer, rows, false), op,
            "layer buffers must be C-contiguous uint8 (num_pages, stride)",
            nb::type_name(buffer.type()).c_str());
    if (writable) {
      WritableRows target;
      require(nb::try_cast(buffer, target, false), op, "the view must be writable",
              "a read-only one");
    }
    // Writable where it was asked for; a reader gets no more than its own care.
    layers.push_back(
        {const_cast<std::byte*>(reinterpret_cast<const std::byte*>(rows.data())), rows.shape(1)});
    page_bytes += rows.shape(1);
    num_pages = std::min(num_pages, static_cast<int64_t>(rows.shape(0)));
    arrays.emplace_back(rows);
  }
  require(!layers.empty(), op, "a view must have layers", "none");
  page_ids.reserve(nb::len(ids));
  for (nb::handle id : ids) {
    const long long page = PyLong_AsLongLong(id.ptr());
    if (page == -1 && PyErr_Occurred() != nullptr) nb::raise_python_error();
    require(page >= 0 && page < num_pages, op,
            "page ids must be in [0, " + std::to_string(num_pages) + ")", std::to_string(page));
    page_ids.push_back(page);
  }
}

}  // namespace kt::kvcache
