// SPDX-License-Identifier: Apache-2.0
// Binding of the chain's hashes.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "bindings.h"
#include "check.h"
#include "gil.h"
#include "hash/constants.h"
#include "hash/sha256.h"

namespace kt::kvcache {
namespace {

// Bytes of any object that has them in one piece; held, and kept from being resized, meanwhile.
class HeldBytes {
 public:
  HeldBytes(nb::handle object, int flags) {
    if (PyObject_GetBuffer(object.ptr(), &buffer_, flags) != 0) nb::raise_python_error();
  }
  ~HeldBytes() { PyBuffer_Release(&buffer_); }
  HeldBytes(const HeldBytes&) = delete;
  HeldBytes& operator=(const HeldBytes&) = delete;

  uint8_t* data() const { return static_cast<uint8_t*>(buffer_.buf); }
  size_t size() const { return static_cast<size_t>(buffer_.len); }

 private:
  Py_buffer buffer_;
};

const HashPath& find_path(const std::optional<std::string>& name) {
  const auto& paths = hash_paths();
  const auto path = std::find_if(paths.begin(), paths.end(), [&](const HashPath& p) {
    return (!name || *name == p.name) && p.supported();
  });
  require(path != paths.end(), "run_hasher", "path must be one of hash_paths()",
          name.value_or("none"));
  return *path;
}

class RunHasher {
 public:
  RunHasher(nb::bytes first_block, int64_t page_tokens, const std::optional<std::string>& path)
      : path_(find_path(path)), page_tokens_(static_cast<uint32_t>(page_tokens)) {
    require(first_block.size() == kBlockBytes, "run_hasher", "first_block must have 64 bytes",
            std::to_string(first_block.size()));
    require(page_tokens > 0 && page_tokens <= std::numeric_limits<uint32_t>::max(), "run_hasher",
            "page_tokens must be in [1, 2**32)", std::to_string(page_tokens));
    std::memcpy(run_.state, kInitialState, sizeof(run_.state));
    std::memcpy(run_.rest, first_block.data(), kBlockBytes);
    run_.num_rest = run_.num_bytes = kBlockBytes;
  }

  void append(nb::handle tokens, nb::bytearray hashes) {
    const HeldBytes token_bytes(tokens, PyBUF_SIMPLE);
    const size_t page_bytes = size_t{4} * page_tokens_, num_before = hashes.size();
    require(token_bytes.size() % page_bytes == 0, "run_hasher", "tokens must fill whole pages",
            std::to_string(token_bytes.size()) + " bytes");
    const size_t num_pages = token_bytes.size() / page_bytes;
    if (num_pages == 0) return;
    const auto size = static_cast<Py_ssize_t>(num_before + num_pages * kHashBytes);
    if (PyByteArray_Resize(hashes.ptr(), size) != 0) nb::raise_python_error();
    const HeldBytes out(hashes, PyBUF_WRITABLE);
    RunningHash run = run_;  // a copy: other threads may call meanwhile
    {
      ReleasedGil released;
      path_.hash(run, {token_bytes.data(), num_pages, page_tokens_, out.data() + num_before});
    }
    run_ = run;
  }

 private:
  const HashPath& path_;
  uint32_t page_tokens_;
  RunningHash run_;
};

// The value of an int of at most one digit, as nearly all ids are, without a call; negative for
// others.
int64_t small_id(PyObject* id) {
  auto* number = reinterpret_cast<PyLongObject*>(id);
#if PY_VERSION_HEX >= 0x030C0000
  return PyUnstable_Long_IsCompact(number) ? int64_t{PyUnstable_Long_CompactValue(number)} : -1;
#else
  return Py_SIZE(id) == 1 ? int64_t{number->ob_digit[0]} : Py_SIZE(id) == 0 ? 0 : -1;
#endif
}

// A prompt's ids are objects all over the heap, 32 bytes each: more than a core's caches. This many
// are asked for before they are read, some hundred nanoseconds ahead, as long as memory takes.
constexpr Py_ssize_t kIdsAhead = 64;

// Ids as u32 little-endian; None where one is not an int of that range. Nothing in the loop runs
// Python code, so that the list stays what it is.
nb::object encode_tokens(nb::list tokens) {
  const auto n = static_cast<Py_ssize_t>(tokens.size());
  PyObject* const* ids = reinterpret_cast<PyListObject*>(tokens.ptr())->ob_item;
  nb::bytearray encoded(nullptr, 4 * tokens.size());
  auto* out = static_cast<uint8_t*>(encoded.data());
  for (Py_ssize_t i = 0; i < n; ++i) {
    __builtin_prefetch(ids[std::min(i + kIdsAhead, n - 1)]);
    if (!PyLong_CheckExact(ids[i])) return nb::none();
    int overflow = 0;
    long long id = small_id(ids[i]);
    if (id < 0) id = PyLong_AsLongLongAndOverflow(ids[i], &overflow);
    if (overflow != 0 || id < 0 || id > std::numeric_limits<uint32_t>::max()) return nb::none();
    const auto word = static_cast<uint32_t>(id);
    std::memcpy(out + 4 * i, &word, sizeof(word));
  }
  return encoded;
}

}  // namespace

void bind_hash(nb::module_& m) {
  nb::class_<RunHasher>(m, "RunHasher")
      .def(nb::init<nb::bytes, int64_t, const std::optional<std::string>&>(),
           nb::arg("first_block"), nb::arg("page_tokens"), nb::arg("path") = nb::none())
      .def("append", &RunHasher::append, nb::arg("tokens"), nb::arg("hashes"));
  m.def("encode_tokens", encode_tokens, nb::arg("tokens"));
  m.def("hash_paths", [] {
    std::vector<std::string> names;
    for (const HashPath& path : hash_paths())
      if (path.supported()) names.emplace_back(path.name);
    return names;
  });
}

}  // namespace kt::kvcache
