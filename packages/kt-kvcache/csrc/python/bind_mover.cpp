// SPDX-License-Identifier: Apache-2.0
// Binding of the page mover. Its threads never hold the GIL: a Python thread waits for ended
// batches and sets their futures (native_mover.py).
#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

#include "bindings.h"
#include "check.h"
#include "gil.h"
#include "move/page_mover.h"
#include "views.h"

namespace kt::kvcache {
namespace {

template <class T, int rank>
using Array = nb::ndarray<T, nb::ndim<rank>, nb::c_contig, nb::device::cpu>;

// A batch and what of Python's it needs. Destroyed only by those who hold the GIL.
struct HeldBatch : Batch {
  std::vector<nb::ndarray<nb::ro>> layer_arrays;
  nb::object arrays;  // what statuses and sums point into
  nb::object ended;   // what wait returns for it
};

// The mover as Python holds it.
class Handle {
 public:
  Handle(int64_t num_threads, int64_t inflight_bytes, bool with_ring) {
    constexpr int64_t kMostThreads = 1024;
    require(num_threads >= 1 && num_threads <= kMostThreads, "mover",
            "num_threads must be in [1, 1024]", std::to_string(num_threads));
    require(inflight_bytes >= 1, "mover", "inflight_bytes must be >= 1",
            std::to_string(inflight_bytes));
    try {
      mover_ = new PageMover(static_cast<size_t>(num_threads), static_cast<size_t>(inflight_bytes),
                             with_ring);
    } catch (const std::system_error& error) {
      errno = error.code().value();
      PyErr_SetFromErrno(PyExc_OSError);
      throw nb::python_error();
    }
  }
  ~Handle() {
    if (!mover_->forked()) delete mover_;
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  // False if there are no pages: then `wait` will not return `ended`.
  bool move(bool is_read, nb::sequence layer_buffers, nb::sequence page_ids,
            Array<const int32_t, 1> fds, Array<const uint64_t, 1> offsets,
            Array<const uint64_t, 1> seeds, Array<uint64_t, 2> sums, int64_t extent_bytes,
            Array<int32_t, 1> statuses, nb::object ended) {
    const char* op = is_read ? "mover.read" : "mover.write";
    View view(op, layer_buffers, page_ids, is_read);
    const size_t n = view.page_ids.size();
    const size_t payload = (view.page_bytes + kAlign - 1) / kAlign * kAlign;
    require(extent_bytes >= static_cast<int64_t>(kAlign) && extent_bytes % kAlign == 0, op,
            "extent_bytes must be a multiple of 4096, at least that", std::to_string(extent_bytes));
    const size_t extents = Extents{payload, static_cast<size_t>(extent_bytes), 0}.count();
    const std::pair<const char*, size_t> lengths[] = {{"fds", fds.shape(0)},
                                                      {"offsets", offsets.shape(0)},
                                                      {"seeds", seeds.shape(0)},
                                                      {"sums", sums.shape(0)},
                                                      {"statuses", statuses.shape(0)}};
    for (const auto& [name, length] : lengths)
      require(length == n, op,
              std::string(name) + " must have an entry for each of " + std::to_string(n) + " pages",
              std::to_string(length));
    require(sums.shape(1) == extents, op, "sums must have " + std::to_string(extents) + " extents",
            std::to_string(sums.shape(1)));
    for (size_t i = 0; i < n; ++i)
      require(offsets(i) % kAlign == 0 && offsets(i) >> 63 == 0, op,
              "offsets must be multiples of 4096 below 2**63", std::to_string(offsets(i)));

    auto batch = std::make_unique<HeldBatch>();
    batch->is_read = is_read;
    batch->layers = std::move(view.layers);
    batch->page_ids = std::move(view.page_ids);
    batch->fds.assign(fds.data(), fds.data() + n);
    batch->offsets.assign(offsets.data(), offsets.data() + n);
    batch->seeds.assign(seeds.data(), seeds.data() + n);
    batch->payload_bytes = payload;
    batch->extent_bytes = static_cast<size_t>(extent_bytes);
    batch->statuses = statuses.data();
    batch->sums = sums.data();
    batch->layer_arrays = std::move(view.arrays);
    batch->arrays = nb::make_tuple(statuses, sums);
    batch->ended = std::move(ended);
    if (n == 0) return false;
    mover_->submit(std::move(batch));
    return true;
  }

  nb::list wait() {
    std::vector<std::unique_ptr<Batch>> ended;
    {
      ReleasedGil released;
      ended = mover_->wait();
    }
    nb::list objects;
    for (const auto& batch : ended) objects.append(static_cast<HeldBatch&>(*batch).ended);
    return objects;
  }

  void close() {
    ReleasedGil released;
    mover_->close();
  }

 private:
  PageMover* mover_;
};

}  // namespace

void bind_mover(nb::module_& m) {
  nb::class_<Handle>(m, "PageMover")
      .def(nb::init<int64_t, int64_t, bool>(), nb::arg("num_threads"), nb::arg("inflight_bytes"),
           nb::arg("with_ring"))
      .def("move", &Handle::move, nb::arg("is_read"), nb::arg("layer_buffers"), nb::arg("page_ids"),
           nb::arg("fds").noconvert(), nb::arg("offsets").noconvert(), nb::arg("seeds").noconvert(),
           nb::arg("sums").noconvert(), nb::arg("extent_bytes"), nb::arg("statuses").noconvert(),
           nb::arg("ended"))
      .def("wait", &Handle::wait)
      .def("close", &Handle::close);
}

}  // namespace kt::kvcache
