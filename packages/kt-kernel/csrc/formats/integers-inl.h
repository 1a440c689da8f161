// SPDX-License-Identifier: Apache-2.0
// Integers with a bfloat16 scale per group of K (32, 64, 128, or a whole row): int8, int4, and int4
// with zero points. Textual, included inside a target's namespace.
//
// From floats: scale = extreme / its code, rounded to bf16 *before* q is computed, so that rounding
// the scale adds no bias. A group with a weight that is not finite gets a NaN scale: its outputs
// must not look healthy.

// The bf16 scale by which `extent` is `steps` steps, and what to multiply values by: 0 where the
// extent is too small to divide by.
struct GroupScale {
  uint16_t bits;
  float inverse;
};

inline GroupScale group_scale(float extent, float steps, bool finite) {
  if (!finite) return {0x7fc0, 0.0f};
  const uint16_t bits = kt::float_to_bf16(extent / steps);
  const float inverse = 1.0f / kt::bf16_to_float(bits), size = inverse < 0 ? -inverse : inverse;
  if (!(size <= std::numeric_limits<float>::max())) return {0, 0.0f};
  return {bits, inverse};
}

// The source of a row that is already quantised: bytes, and float scales per group.
struct QuantizedRow {
  const uint8_t* q;  // [k]
  const float* scales;
  const uint8_t* zeros;  // or null
};

inline QuantizedRow quantized_row(const PackArgs& args, int64_t row) {
  const int64_t groups = (args.into.k + args.into.group_size - 1) / args.into.group_size;
  return {static_cast<const uint8_t*>(args.weight) + row * args.into.k,
          static_cast<const float*>(args.scales) + row * groups,
          args.zeros == nullptr ? nullptr : args.zeros + row * groups};
}

// Rows without zero points: q + kBias is stored, kLow <= q <= kHigh. Of floats, the value farthest
// from 0 becomes kLow (or, where the range has a middle, kHigh). `put_block` writes 32 of them.
template <int kLow, int kHigh, int kBias, class PutBlock>
inline void pack_signed(const PackArgs& args, int64_t row, const Lane& to, PutBlock put_block) {
  const FloatRow floats = float_row(args, row);
  for_each_group(args.into, [&](int group, int begin, int end) {
    GroupScale scale{0, 0.0f};
    if (!args.quantized) {
      Extent extent;
      float x[kBlock];
      for (int block = begin; block < end; ++block) floats.load(block, x), extent.include(x);
      const float extreme = kLow == -kHigh ? -extent.absmax() : extent.farthest();
      scale = group_scale(extreme, kLow, extent.finite());
    } else if (row >= 0) {
      scale.bits = kt::float_to_bf16(quantized_row(args, row).scales[group]);
    }
    put(to.header(group), to.lane, scale.bits);
    for (int block = begin; block < end; ++block) {
      int8_t q[kBlock];
      if (!args.quantized) {
        float x[kBlock];
        floats.load(block, x);
        if (scale.inverse == 0.0f)
          std::memset(q, kBias, kBlock);
        else
          quantize(x, 0.0f, scale.inverse, kBias, kBias + kLow, kBias + kHigh, q);
      } else {
        std::memset(q, kBias, kBlock);
        const int left = args.into.k - block * kBlock;
        if (row >= 0)
          std::memcpy(q, quantized_row(args, row).q + block * kBlock,
                      left < kBlock ? left : kBlock);
      }
      put_block(to.block(block), to.lane, q);
    }
  });
}

struct Int8 : SignedBytes {
  static constexpr FormatInfo kInfo = {
      .name = "int8",
      .act_mode = ActMode::int8_g32,
      .data_bytes = kBlock * kPanelRows,
      .header_bytes = 2 * kPanelRows,
      .group = kChosenGroup,
      .source_k = 1,
      .source_bytes = 1,
      .source_scales = SourceScales::group,
      .source_zeros = false,
      .takes_floats = true,
      .weight_error = 0.0054f,
      .layout = "header bfloat16 scales [8], data int8 [8][8][4]; value = scale * q"};

  static Vec::F scale(const std::byte* group, int, int64_t stride) {
    return Vec::load_bf16(group, stride);
  }
  static void pack_row(const PackArgs& args, int64_t row, const Lane& to) {
    pack_signed<-127, 127, 0>(args, row, to, [](std::byte* block, int lane, int8_t (&q)[kBlock]) {
      put_bytes(block, lane, q);
    });
  }
};

struct Int4 : OffsetNibbles {
  static constexpr FormatInfo kInfo = {
      .name = "int4",
      .act_mode = ActMode::int8_g32,
      .data_bytes = kBlock * kPanelRows / 2,
      .header_bytes = 2 * kPanelRows,
      .group = kChosenGroup,
      .source_k = 1,
      .source_bytes = 1,
      .source_scales = SourceScales::group,
      .source_zeros = false,
      .takes_floats = true,
      .weight_error = 0.086f,
      .layout =
          "header bfloat16 scales [8], data uint4 [4][8][4] (two per byte, 16 "
          "of K apart); value = scale * (q - 8)"};

  static Vec::F scale(const std::byte* group, int, int64_t stride) {
    return Vec::load_bf16(group, stride);
  }
  static Vec::I operands(const std::byte*, int, int64_t) { return Vec::set1_i(0x00080008); }
  static void pack_row(const PackArgs& args, int64_t row, const Lane& to) {
    // Both ends of the range are used: a scale may be negative, as in Q4_0.
    pack_signed<-8, 7, 8>(args, row, to, [](std::byte* block, int lane, int8_t (&q)[kBlock]) {
      put_nibbles(block, lane, reinterpret_cast<const uint8_t*>(q));
    });
  }
};

// Asymmetric 4 bits, as AWQ and GPTQ publish: value = scale * (q - zero), q and zero in [0, 15].
struct Int4Zp : OffsetNibbles {
  static constexpr FormatInfo kInfo = {
      .name = "int4_zp",
      .act_mode = ActMode::int8_g32,
      .data_bytes = kBlock * kPanelRows / 2,
      .header_bytes = 3 * kPanelRows,
      .group = kChosenGroup,
      .source_k = 1,
      .source_bytes = 1,
      .source_scales = SourceScales::group,
      .source_zeros = true,
      .takes_floats = true,
      .weight_error = 0.081f,
      .layout =
          "header bfloat16 scales [8], uint8 zeros [8]; data as int4; value = "
          "scale * (q - zero)"};

  static Vec::F scale(const std::byte* group, int, int64_t stride) {
    return Vec::load_bf16(group, stride);
  }
  static Vec::I operands(const std::byte* group, int, int64_t stride) {
    const std::byte* zeros = group + 2 * kPanelRows;
    return Vec::pair_s8(zeros, zeros, stride);
  }
  static void pack_row(const PackArgs& args, int64_t row, const Lane& to) {
    const FloatRow floats = float_row(args, row);
    for_each_group(args.into, [&](int group, int begin, int end) {
      GroupScale scale{0, 0.0f};
      uint8_t zero = 0;
      if (!args.quantized) {
        Extent extent;  // it includes 0, so that 0 is a value the group can hold exactly
        float x[kBlock];
        for (int block = begin; block < end; ++block) floats.load(block, x), extent.include(x);
        scale = group_scale(extent.max() - extent.min(), 15.0f, extent.finite());
        const float at = -extent.min() * scale.inverse + 0.5f;
        zero = static_cast<uint8_t>(at < 15.0f ? at : 15.0f);
      } else if (row >= 0) {
        const QuantizedRow from = quantized_row(args, row);
        scale.bits = kt::float_to_bf16(from.scales[group]);
        zero = from.zeros[group];
      }
      std::byte* const header = to.header(group);
      put(header, to.lane, scale.bits);
      put(header + 2 * kPanelRows, to.lane, zero);
      for (int block = begin; block < end; ++block) {
        int8_t q[kBlock];
        std::memset(q, zero, kBlock);
        if (!args.quantized) {
          float x[kBlock];
          floats.load(block, x);
          if (scale.inverse != 0.0f) quantize(x, 0.0f, scale.inverse, zero, 0, 15, q);
        } else if (row >= 0) {
          const int left = args.into.k - block * kBlock;
          std::memcpy(q, quantized_row(args, row).q + block * kBlock,
                      left < kBlock ? left : kBlock);
        }
        put_nibbles(to.block(block), to.lane, reinterpret_cast<const uint8_t*>(q));
      }
    });
  }
};
