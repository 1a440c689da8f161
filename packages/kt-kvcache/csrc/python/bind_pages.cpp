// SPDX-License-Identifier: Apache-2.0
// Walks over the trie of cached pages, which are Python objects (page.py): its slots are read where
// they lie in the object, as attribute access would in ten times the time. The GIL is held
// throughout. What the walks mean is defined by index.py.
#include <nanobind/nanobind.h>
#include <structmember.h>

#include <algorithm>
#include <cstring>

#include "bindings.h"
#include "check.h"

namespace kt::kvcache {
namespace {

// A page's body in parts, as a chain has it, in the order in which Python orders bytes.
struct Body {
  uint32_t header;
  const char* tokens;
  size_t token_bytes;
  const char* extras;
  size_t extra_bytes;

  // < 0, 0, > 0 as `other` is less, equal or greater.
  int compare(const char* other, size_t left) const {
    const std::pair<const char*, size_t> parts[] = {
        {reinterpret_cast<const char*>(&header), sizeof(header)},
        {tokens, token_bytes},
        {extras, extra_bytes}};
    for (const auto& [part, size] : parts) {
      if (const int order = std::memcmp(other, part, std::min(size, left))) return order;
      if (left < size) return -1;
      other += size, left -= size;
    }
    return left > 0 ? 1 : 0;
  }
};

class CachedPages {
 public:
  explicit CachedPages(nb::type_object type) : type_(type) {
    parent_ = offset_of("parent"), body_ = offset_of("body"), page_id_ = offset_of("page_id");
    children_ = offset_of("children"), pins_ = offset_of("pins");
    last_used_ = offset_of("last_used");
  }

  // Follows the chain's bodies down from `root`: (last page, page ids).
  nb::tuple match(nb::handle root, nb::bytearray tokens, int64_t page_tokens, nb::dict extras,
                  int64_t num_pages) const {
    require(page_tokens > 0 && page_tokens <= UINT32_MAX, "match",
            "page_tokens must be in [1, 2**32)", std::to_string(page_tokens));
    const size_t page_bytes = 4 * static_cast<size_t>(page_tokens);
    require(num_pages >= 0 && static_cast<size_t>(num_pages) <= tokens.size() / page_bytes, "match",
            "num_pages must be among the full pages", std::to_string(num_pages));
    constexpr char kNoExtras[2] = {};
    PyObject* page = checked(root.ptr());
    nb::list page_ids;
    for (int64_t i = 0; i < num_pages; ++i) {
      Body body = {static_cast<uint32_t>(page_tokens),
                   static_cast<const char*>(tokens.data()) + static_cast<size_t>(i) * page_bytes,
                   page_bytes, kNoExtras, sizeof(kNoExtras)};
      if (extras.size() > 0) {
        PyObject* encoded = PyDict_GetItemWithError(extras.ptr(), nb::int_(i).ptr());
        if (encoded == nullptr && PyErr_Occurred() != nullptr) nb::raise_python_error();
        if (encoded != nullptr) {
          if (!PyBytes_Check(encoded)) throw nb::type_error("[kvstore.match] extras must be bytes");
          body.extras = PyBytes_AS_STRING(encoded);
          body.extra_bytes = static_cast<size_t>(PyBytes_GET_SIZE(encoded));
        }
      }
      PyObject* child = find(page, body);
      if (child == nullptr) break;
      page_ids.append(nb::handle(slot(child, page_id_)));
      page = child;
    }
    return nb::make_tuple(nb::handle(page), page_ids);
  }

  // Adds a pin to `page` and, as long as they had none, to those above; how many had none.
  int64_t pin(nb::handle page) const {
    int64_t num_pinned = 0;
    for (PyObject* above = checked(page.ptr()); above != Py_None; ++num_pinned) {
      const long pins = count(above);
      set(above, pins_, nb::steal(PyLong_FromLong(pins + 1)));
      if (pins > 0) break;
      above = slot(above, parent_);
      if (above != Py_None) checked(above);
    }
    return num_pinned;
  }

  // Takes a pin from `page` and, as long as none is left, from those above, which then were last
  // used at `clock`; how many have none left.
  int64_t unpin(nb::handle page, nb::int_ clock) const {
    int64_t num_unpinned = 0;
    for (PyObject* above = checked(page.ptr()); above != Py_None; ++num_unpinned) {
      const long pins = count(above);
      set(above, pins_, nb::steal(PyLong_FromLong(pins - 1)));
      if (pins > 1) break;
      set(above, last_used_, clock);
      above = slot(above, parent_);
      if (above != Py_None) checked(above);
    }
    return num_unpinned;
  }

 private:
  Py_ssize_t offset_of(const char* name) const {
    const nb::object descriptor = type_.attr(name);
    const bool is_member = Py_TYPE(descriptor.ptr()) == &PyMemberDescr_Type;
    const PyMemberDef* member =
        is_member ? reinterpret_cast<PyMemberDescrObject*>(descriptor.ptr())->d_member : nullptr;
    require(member != nullptr && member->type == T_OBJECT_EX, "pages",
            "the type must have a slot of each name", name);
    return member->offset;
  }

  PyObject* checked(PyObject* page) const {
    if (Py_TYPE(page) != reinterpret_cast<PyTypeObject*>(type_.ptr()))
      throw nb::type_error("[kvstore.pages] pages must be of the type given");
    return page;
  }

  static PyObject*& place(PyObject* page, Py_ssize_t offset) {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(page) + offset);
  }

  static PyObject* slot(PyObject* page, Py_ssize_t offset) {
    PyObject* value = place(page, offset);
    if (value == nullptr) throw nb::attribute_error("[kvstore.pages] a page must have all slots");
    return value;
  }

  static void set(PyObject* page, Py_ssize_t offset, nb::object value) {
    if (!value.is_valid()) nb::raise_python_error();
    PyObject* old = place(page, offset);
    place(page, offset) = value.release().ptr();
    Py_XDECREF(old);
  }

  long count(PyObject* page) const {
    const long pins = PyLong_AsLong(slot(page, pins_));
    if (pins == -1 && PyErr_Occurred() != nullptr) nb::raise_python_error();
    return pins;
  }

  // Children stand in the order of their bodies.
  PyObject* find(PyObject* page, const Body& body) const {
    PyObject* children = slot(page, children_);
    if (!PyList_Check(children)) throw nb::type_error("[kvstore.pages] children must be a list");
    Py_ssize_t first = 0, last = PyList_GET_SIZE(children);
    while (first < last) {
      const Py_ssize_t middle = first + (last - first) / 2;
      PyObject* child = checked(PyList_GET_ITEM(children, middle));
      PyObject* its = slot(child, body_);
      if (!PyBytes_Check(its)) throw nb::type_error("[kvstore.pages] bodies must be bytes");
      const int order =
          body.compare(PyBytes_AS_STRING(its), static_cast<size_t>(PyBytes_GET_SIZE(its)));
      if (order == 0) return child;
      if (order < 0)
        first = middle + 1;
      else
        last = middle;
    }
    return nullptr;
  }

  nb::type_object type_;
  Py_ssize_t parent_, body_, page_id_, children_, pins_, last_used_;
};

}  // namespace

void bind_pages(nb::module_& m) {
  nb::class_<CachedPages>(m, "CachedPages")
      .def(nb::init<nb::type_object>(), nb::arg("type"))
      .def("match", &CachedPages::match, nb::arg("root"), nb::arg("tokens"), nb::arg("page_tokens"),
           nb::arg("extras"), nb::arg("num_pages"))
      .def("pin", &CachedPages::pin, nb::arg("page"))
      .def("unpin", &CachedPages::unpin, nb::arg("page"), nb::arg("clock"));
}

}  // namespace kt::kvcache
