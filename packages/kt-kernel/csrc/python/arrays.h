// SPDX-License-Identifier: Apache-2.0
// Arrays from Python, checked against a rule and borrowed without a copy. Relations between several
// arrays are stated by passing an extent of one as an axis of the next.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kt/kernels.h"

namespace kt::python {

namespace nb = nanobind;

enum class Element : uint8_t { float32, bf16, f16, int32, int8, uint8 };
enum class Access : uint8_t { read, write };

// One dimension of a rule: a free one by its name, or one of known extent.
struct Axis {
  Axis(const char* free_name) : name(free_name) {}  // NOLINT(runtime/explicit): rules read as lists
  template <std::integral Int>
  Axis(Int known) : extent(static_cast<int64_t>(known)) {}  // NOLINT(runtime/explicit)
  const char* name = nullptr;
  int64_t extent = -1;
};

// A C-contiguous CPU array. Owns a reference to the memory; destroy it with the GIL held.
class Array {
 public:
  // Throws `[op] name must be C-contiguous float32 (num_tokens, 2048); got float64 (3, 8)`. bf16
  // also arrives as uint16.
  Array(const char* op, const char* name, nb::handle value, Element element,
        std::initializer_list<Axis> shape, Access access = Access::read);

  const char* name() const { return name_; }
  int dim(size_t axis) const { return static_cast<int>(array_.shape(axis)); }
  template <class T = void>
  const T* read() const {
    return static_cast<const T*>(array_.data());
  }
  template <class T = void>
  T* write() const {  // only after Access::write
    return static_cast<T*>(const_cast<void*>(array_.data()));
  }
  const nb::ndarray<nb::ro>& reference() const { return array_; }

 private:
  const char* name_;
  nb::ndarray<nb::ro> array_;
};

// Throws `[op] out must not overlap x; …` if memory that an op writes is also among what it reads.
// in_place: an elementwise op, whose output may be exactly an input.
void check_disjoint(const char* op, const Array& written, std::initializer_list<const Array*> read,
                    bool in_place = false);

size_t rank_of(nb::handle value);  // number of dimensions; 0 for what is not an array

// "float32" | "bf16" | "f16", as `argument` of `op`.
DType dtype_from_name(const char* op, const char* argument, const std::string& name);
Element element_of(DType dtype);
// The same for caches, which may also be "int8".
KvDType kv_dtype_from_name(const char* op, const char* argument, const std::string& name);
Element element_of(KvDType dtype);

}  // namespace kt::python
