// SPDX-License-Identifier: Apache-2.0
// What arrays.h promises: rule, actual, and nothing copied.
#include "arrays.h"

#include <limits>
#include <sstream>

#include "kt/check.h"

namespace kt::python {
namespace {

using Code = nb::dlpack::dtype_code;

const char* name_of(Element element) {
  switch (element) {
    case Element::float32:
      return "float32";
    case Element::bf16:
      return "bf16";
    case Element::f16:
      return "f16";
    case Element::int32:
      return "int32";
    case Element::int8:
      return "int8";
    case Element::uint8:
      return "uint8";
  }
  return "?";
}

bool is_type(nb::dlpack::dtype type, Code code, int bits) {
  return type.code == static_cast<uint8_t>(code) && type.bits == bits && type.lanes == 1;
}

bool matches(nb::dlpack::dtype type, Element element) {
  switch (element) {
    case Element::float32:
      return is_type(type, Code::Float, 32);
    case Element::bf16:
      return is_type(type, Code::Bfloat, 16) || is_type(type, Code::UInt, 16);
    case Element::f16:
      return is_type(type, Code::Float, 16);
    case Element::int32:
      return is_type(type, Code::Int, 32);
    case Element::int8:
      return is_type(type, Code::Int, 8);
    case Element::uint8:
      return is_type(type, Code::UInt, 8);
  }
  return false;
}

std::string text_of(nb::dlpack::dtype type) {
  const char* kind = "opaque";
  switch (static_cast<Code>(type.code)) {
    case Code::Int:
      kind = "int";
      break;
    case Code::UInt:
      kind = "uint";
      break;
    case Code::Float:
      kind = "float";
      break;
    case Code::Bfloat:
      kind = "bfloat";
      break;
    case Code::Complex:
      kind = "complex";
      break;
    case Code::Bool:
      return "bool";
    default:
      break;
  }
  return kind + std::to_string(type.bits);
}

template <class Item>
std::string tuple_text(size_t n, Item item) {
  std::ostringstream text;
  text << '(';
  for (size_t i = 0; i < n; ++i) text << (i == 0 ? "" : ", ") << item(i);
  text << (n == 1 ? ",)" : ")");
  return text.str();
}

std::string text_of(const nb::ndarray<nb::ro>& array) {
  return text_of(array.dtype()) + ' ' +
         tuple_text(array.ndim(), [&](size_t i) { return array.shape(i); });
}

bool fits(const nb::ndarray<nb::ro>& array, const std::initializer_list<Axis>& shape) {
  if (array.ndim() != shape.size()) return false;
  for (size_t i = 0; i < shape.size(); ++i) {
    const Axis& axis = shape.begin()[i];
    const auto extent = static_cast<int64_t>(array.shape(i));
    // Extents are int in the kernels, which also look one vector ahead.
    if (extent > std::numeric_limits<int>::max() - 64) return false;
    if (axis.name == nullptr && extent != axis.extent) return false;
  }
  return true;
}

bool is_contiguous(const nb::ndarray<nb::ro>& array) {
  if (array.size() == 0) return true;
  int64_t step = 1;
  for (size_t i = array.ndim(); i-- > 0;) {
    if (array.shape(i) != 1 && array.stride(i) != step) return false;
    step *= static_cast<int64_t>(array.shape(i));
  }
  return true;
}

bool is_aligned(const nb::ndarray<nb::ro>& array) {
  return reinterpret_cast<uintptr_t>(array.data()) % (array.dtype().bits / 8) == 0;
}

}  // namespace

Array::Array(const char* op, const char* name, nb::handle value, Element element,
             std::initializer_list<Axis> shape, Access access)
    : name_(name) {
  const auto refuse = [&](const std::string& actual) {
    const std::string axes = tuple_text(shape.size(), [&](size_t i) {
      const Axis& axis = shape.begin()[i];
      return axis.name != nullptr ? std::string(axis.name) : std::to_string(axis.extent);
    });
    fail(op, name, " must be ", access == Access::write ? "writable " : "", "C-contiguous ",
         name_of(element), ' ', axes, "; got ", actual);
  };
  if (!nb::try_cast(value, array_, false)) {
    std::string actual = nb::type_name(value.type()).c_str();
    for (const char* attribute : {"dtype", "device", "layout"}) {
      const nb::object description = nb::getattr(value, attribute, nb::none());
      if (!description.is_none())
        actual += std::string(" ") + nb::str(nb::handle(description)).c_str();
    }
    refuse(actual);
  }
  if (array_.device_type() != nb::device::cpu::value)
    refuse(text_of(array_) + " on device type " + std::to_string(array_.device_type()));
  if (!matches(array_.dtype(), element) || !fits(array_, shape)) refuse(text_of(array_));
  if (!is_contiguous(array_))
    refuse(text_of(array_) + " with strides " +
           tuple_text(array_.ndim(), [&](size_t i) { return array_.stride(i); }));
  if (!is_aligned(array_)) refuse(text_of(array_) + " at an unaligned address");
  if (access == Access::write) {
    nb::ndarray<> writable;
    if (!nb::try_cast(value, writable, false)) refuse("read-only " + text_of(array_));
    array_ = nb::ndarray<nb::ro>(writable);
  }
}

void check_disjoint(const char* op, const Array& written, std::initializer_list<const Array*> read,
                    bool in_place) {
  const auto begin = [](const Array* a) { return a->read<std::byte>(); };
  for (const Array* input : read) {
    if (input == nullptr) continue;
    const size_t written_bytes = written.reference().nbytes(), bytes = input->reference().nbytes();
    if (in_place && begin(&written) == begin(input) && written_bytes == bytes) continue;
    const bool overlap =
        begin(&written) < begin(input) + bytes && begin(input) < begin(&written) + written_bytes;
    if (overlap)
      fail(op, written.name(), " must not overlap ", input->name(), in_place ? " in part" : "",
           "; got the same memory");
  }
}

size_t rank_of(nb::handle value) {
  nb::ndarray<nb::ro> array;
  return nb::try_cast(value, array, false) ? array.ndim() : 0;
}

DType dtype_from_name(const char* op, const char* argument, const std::string& name) {
  if (name == "float32") return DType::f32;
  if (name == "bf16") return DType::bf16;
  if (name == "f16") return DType::f16;
  fail(op, argument, " must be one of float32, bf16, f16; got ", name);
}

Element element_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return Element::float32;
    case DType::bf16:
      return Element::bf16;
    case DType::f16:
      return Element::f16;
  }
  return Element::float32;
}

KvDType kv_dtype_from_name(const char* op, const char* argument, const std::string& name) {
  if (name == "float32") return KvDType::f32;
  if (name == "bf16") return KvDType::bf16;
  if (name == "f16") return KvDType::f16;
  if (name == "int8") return KvDType::int8;
  fail(op, argument, " must be one of float32, bf16, f16, int8; got ", name);
}

Element element_of(KvDType dtype) {
  switch (dtype) {
    case KvDType::f32:
      return Element::float32;
    case KvDType::bf16:
      return Element::bf16;
    case KvDType::f16:
      return Element::f16;
    case KvDType::int8:
      return Element::int8;
  }
  return Element::float32;
}

}  // namespace kt::python
