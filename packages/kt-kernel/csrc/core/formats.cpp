// SPDX-License-Identifier: Apache-2.0
// Names, shapes and sizes of packed matrices. Their bytes are the business of csrc/formats.
#include "kt/formats.h"

#include <string>

#include "kt/check.h"

namespace kt {
Format format_from_name(const char* op, const char* name) {
  std::string known;
  for (int i = 0; i < kNumFormats; ++i) {
    const Format format = static_cast<Format>(i);
    if (std::string(info(format).name) == name) return format;
    known += (i ? ", " : "") + std::string(info(format).name);
  }
  fail(op, "format must be one of ", known, "; got ", name);
}

PackedMatrix shape_matrix(const char* op, Format format, int n, int k, int group_size) {
  KT_CHECK(op, n > 0 && k > 0, "weight must have rows and columns; got (", n, ", ", k, ")");
  KT_CHECK(op, n <= kMaxExtent && k <= kMaxExtent, "weight must have at most ", kMaxExtent,
           " rows and columns; got (", n, ", ", k, ")");
  const FormatInfo& facts = info(format);
  PackedMatrix matrix;
  matrix.format = format;
  matrix.n = n;
  matrix.k = k;
  matrix.n_padded = round_up(n, kBundleRows);
  matrix.k_padded = round_up(k, kBlock);
  if (facts.group == kChosenGroup) {
    KT_CHECK(op, group_size == 0 || group_size == 32 || group_size == 64 || group_size == 128,
             "group_size must be 32, 64 or 128, or 0 for one group per row; got ", group_size);
    matrix.group_size = group_size == 0 ? matrix.k_padded : group_size;
  } else {
    matrix.group_size = facts.group;
    KT_CHECK(op, facts.takes_floats || k % facts.source_k == 0, "a weight in ", facts.name,
             " must have a multiple of ", facts.source_k, " columns; got ", k);
  }
  const int64_t groups = matrix.group_size == 0 ? 0 : ceil_div(k, matrix.group_size);
  matrix.bundle_bytes = round_up(
      groups * facts.bundle_header_bytes() + matrix.k_padded / kBlock * facts.bundle_data_bytes(),
      64);
  return matrix;
}

size_t matrix_bytes(const PackedMatrix& matrix) {
  return static_cast<size_t>(matrix.n_padded / kBundleRows) * matrix.bundle_bytes;
}

}  // namespace kt
