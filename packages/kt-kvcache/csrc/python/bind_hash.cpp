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
#include "hash/sha256.h"

namespace kt::kvcache {
namespace {

// Bytes of any object that has them in one piece; held, and kept from being resized, meanwhile.
class HeldBytes {
 public:
  explicit HeldBytes(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_SIMPLE) != 0) nb::raise_python_error();
  }
  ~HeldBytes() { PyBuffer_Release(&buffer_); }
  HeldBytes(const HeldBytes&) = delete;
  HeldBytes& operator=(const HeldBytes&) = delete;

  const uint8_t* data() const { return static_cast<const uint8_t*>(buffer_.buf); }
  size_t size() const { return static_cast<size_t>(buffer_.len); }

 private:
  Py_buffer buffer_;
};

const HashPath& find_path(const std::optional<std::string>& name) {
  const auto& paths = hash_paths();
  const auto path = std::find_if(paths.begin(), paths.end(), [&](const HashPath& p) {
    return (!name || *name == p.name) && p.supported();
  });
  require(path != paths.end(), "chain_hash", "path must be one of hash_paths()",
          name.value_or("none"));
  return *path;
}

nb::bytes chain_hash(nb::handle parent, nb::handle tokens, int64_t page_tokens,
                     const std::optional<std::string>& path_name) {
  const HeldBytes parent_bytes(parent), token_bytes(tokens);
  require(parent_bytes.size() == kHashBytes, "chain_hash", "parent must have 32 bytes",
          std::to_string(parent_bytes.size()));
  require(page_tokens > 0 && page_tokens <= std::numeric_limits<uint32_t>::max(), "chain_hash",
          "page_tokens must be in [1, 2**32)", std::to_string(page_tokens));
  const size_t page_bytes = 4 * static_cast<size_t>(page_tokens);
  require(token_bytes.size() % page_bytes == 0, "chain_hash", "tokens must fill whole pages",
          std::to_string(token_bytes.size()) + " bytes");
  const HashPath& path = find_path(path_name);
  const size_t num_pages = token_bytes.size() / page_bytes;
  nb::bytes hashes(nullptr, num_pages * kHashBytes);
  const PagesToHash pages = {parent_bytes.data(), token_bytes.data(), num_pages,
                             static_cast<uint32_t>(page_tokens),
                             reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(hashes.ptr()))};
  {
    ReleasedGil released;
    path.hash(pages);
  }
  return hashes;
}

// Ids as u32 little-endian; None where one is not a plain int of that range.
nb::object encode_tokens(nb::list tokens) {
  nb::bytearray encoded(nullptr, 4 * tokens.size());
  auto* out = static_cast<uint8_t*>(encoded.data());
  for (nb::handle token : tokens) {
    if (!PyLong_Check(token.ptr())) return nb::none();
    int overflow = 0;
    const long long id = PyLong_AsLongLongAndOverflow(token.ptr(), &overflow);
    if (overflow != 0 || id < 0 || id > std::numeric_limits<uint32_t>::max()) return nb::none();
    const auto word = static_cast<uint32_t>(id);
    std::memcpy(out, &word, sizeof(word));
    out += sizeof(word);
  }
  return encoded;
}

}  // namespace

void bind_hash(nb::module_& m) {
  m.def("chain_hash", chain_hash, nb::arg("parent"), nb::arg("tokens"), nb::arg("page_tokens"),
        nb::arg("path") = nb::none());
  m.def("encode_tokens", encode_tokens, nb::arg("tokens"));
  m.def("hash_paths", [] {
    std::vector<std::string> names;
    for (const HashPath& path : hash_paths())
      if (path.supported()) names.emplace_back(path.name);
    return names;
  });
}

}  // namespace kt::kvcache
