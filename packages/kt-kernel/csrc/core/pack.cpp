// SPDX-License-Identifier: Apache-2.0
// Packing one matrix: what a format cannot hold is refused, the rest is its pack kernel's. The
// formats themselves are csrc/formats.
#include <algorithm>
#include <cstdint>

#include "kt/check.h"
#include "kt/dispatch.h"
#include "kt/experts.h"
#include "kt/rounding.h"

namespace kt {
namespace {

// Quantised values are bytes; these formats do not give all of them a meaning.
void check_values(const char* op, const Source& source, const PackedMatrix& into, Range rows) {
  const auto* begin = static_cast<const uint8_t*>(source.weight) + rows.begin * into.k;
  const auto* end = static_cast<const uint8_t*>(source.weight) + rows.end * into.k;
  if (into.format == Format::fp8) {
    const auto* nan = std::find_if(begin, end, [](uint8_t v) { return (v & 0x7f) == 0x7f; });
    KT_CHECK(op, nan == end, "fp8 weights must be finite; got the NaN code ", int{*nan});
  } else if (into.format == Format::int4 || into.format == Format::int4_zp) {
    const auto above_15 = [](uint8_t v) { return v > 15; };
    const auto* over = std::find_if(begin, end, above_15);
    KT_CHECK(op, over == end, info(into.format).name, " values must lie in [0, 15]; got ",
             int{*over});
    if (source.zeros == nullptr) return;
    const int64_t groups = ceil_div(into.k, into.group_size);
    const auto* last = source.zeros + rows.end * groups;
    const auto* zero = std::find_if(source.zeros + rows.begin * groups, last, above_15);
    KT_CHECK(op, zero == last, info(into.format).name, " zero points must lie in [0, 15]; got ",
             int{*zero});
  }
}

}  // namespace

void pack_panels(const char* op, const Source& source, const PackedMatrix& into, Range panels) {
  if (source.quantized)
    check_values(op, source, into,
                 {std::min<int64_t>(panels.begin * kPanelRows, into.n),
                  std::min<int64_t>(panels.end * kPanelRows, into.n)});
  kernels().pack[static_cast<int>(into.format)](
      {source.weight, source.dtype, source.quantized, source.scales, source.zeros, into, panels});
}

}  // namespace kt
