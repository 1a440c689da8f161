// SPDX-License-Identifier: Apache-2.0
// GGUF's plain quants: Q4_0, Q4_1 and Q8_0, blocks of 32 with float16 scales (block_q4_0 … of
// ggml-common.h). Repacked from a file's bytes without loss, or made from floats. Textual, included
// inside a target's namespace.

// Writes one row block by block: from_source(bytes, header, data, lane) moves a file's block, whose
// values lie as ours do; from_floats(x, header, lane, q) makes 32 values, which put_block writes.
template <class Struct>
inline void pack_gguf_row(const PackArgs& args, int64_t row, const Lane& to) {
  constexpr FormatInfo kInfo = Struct::kInfo;
  const int blocks = args.into.k_padded / kBlock;
  const auto* source = static_cast<const uint8_t*>(args.weight) +
                       row * (args.into.k / kInfo.source_k) * kInfo.source_bytes;
  for (int block = 0; block < blocks; ++block) {
    std::byte* const header = to.header(block);
    std::byte* const data = to.block(block);
    if (row >= 0 && args.quantized) {
      Struct::from_source(source + int64_t{block} * kInfo.source_bytes, header, data, to.lane);
      continue;
    }
    int8_t q[kBlock] = {};
    if (row < 0) {
      Struct::put_header(header, to.lane, 0, 0);
    } else {
      float x[kBlock];
      float_row(args, row).load(block, x);
      Struct::from_floats(x, header, to.lane, q);
    }
    Struct::put_block(data, to.lane, q);
  }
}

// 1 / the stored scale; 0 where it is too small to divide by.
inline float inverse_of(uint16_t half) {
  const float scale = kt::f16_to_float(half);
  return scale == 0.0f ? 0.0f : 1.0f / scale;
}

inline bool finite_f16(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

inline uint16_t f16_scale(float value, bool finite) {
  return finite ? kt::float_to_f16(value) : uint16_t{0x7e00};  // NaN: must not look healthy
}

// x = scale * (q - offset) + minimum of 32 nibbles: the first half of them low, the second high.
inline void nibble_values(const uint8_t* nibbles, float scale, int offset, float minimum,
                          float* x) {
  for (int i = 0; i < kBlock / 2; ++i) {
    x[i] = static_cast<float>((nibbles[i] & 15) - offset) * scale + minimum;
    x[i + kBlock / 2] = static_cast<float>((nibbles[i] >> 4) - offset) * scale + minimum;
  }
}

struct Q4_0 : OffsetNibbles {
  static constexpr FormatInfo kInfo = {
      .name = "q4_0",
      .act_mode = ActMode::int8_g32,
      .data_bytes = kBlock * kPanelRows / 2,
      .header_bytes = 2 * kPanelRows,
      .group = kBlock,
      .source_k = kBlock,
      .source_bytes = 18,
      .source_scales = SourceScales::none,
      .source_zeros = false,
      .takes_floats = true,
      .weight_error = 0.086f,
      .layout = "header float16 scales [8], data as int4; value = scale * (q - 8)"};

  static Vec::F scale(const std::byte* group, int, int64_t stride) {
    return Vec::load_f16(group, stride);
  }
  static Vec::I operands(const std::byte*, int, int64_t) { return Vec::set1_i(0x00080008); }

  static void values(const uint8_t* from, float* x) {
    // -0: what is added to any value, a zero of either sign too, and changes none.
    nibble_values(from + 2, kt::f16_to_float(get<uint16_t>(from)), 8, -0.0f, x);
  }
  static void put_header(std::byte* header, int lane, uint16_t d, uint16_t) {
    put(header, lane, d);
  }
  static void put_block(std::byte* block, int lane, const int8_t (&q)[kBlock]) {
    put_nibbles(block, lane, reinterpret_cast<const uint8_t*>(q));
  }
  static void from_source(const uint8_t* from, std::byte* header, std::byte* data, int lane) {
    put_header(header, lane, get<uint16_t>(from), 0);
    for (int j = 0; j < 4; ++j) put_word(data, j, lane, from + 2 + 4 * j);
  }
  // As quantize_row_q4_0_ref: the value of largest magnitude becomes -8 exactly.
  static void from_floats(const float (&x)[kBlock], std::byte* header, int lane,
                          int8_t (&q)[kBlock]) {
    Extent extent;
    extent.include(x);
    const uint16_t d = f16_scale(extent.farthest() / -8.0f, extent.finite());
    put_header(header, lane, d, 0);
    if (finite_f16(d)) quantize(x, 0.0f, inverse_of(d), 8, 0, 15, q);
  }
  static void pack_row(const PackArgs& args, int64_t row, const Lane& to) {
    pack_gguf_row<Q4_0>(args, row, to);
  }
};

struct Q4_1 : MinimumNibbles {
  static constexpr FormatInfo kInfo = {
      .name = "q4_1",
      .act_mode = ActMode::int8_g32,
      .data_bytes = kBlock * kPanelRows / 2,
      .header_bytes = 4 * kPanelRows,
      .group = kBlock,
      .source_k = kBlock,
      .source_bytes = 20,
      .source_scales = SourceScales::none,
      .source_zeros = false,
      .takes_floats = true,
      .weight_error = 0.078f,
      .layout =
          "header float16 scales [8], float16 minima [8]; data as int4; value = "
          "scale * q + minimum"};

  static Vec::F scale(const std::byte* group, int, int64_t stride) {
    return Vec::load_f16(group, stride);
  }
  static Vec::F operands(const std::byte* group, int, int64_t stride) {
    return Vec::load_f16(group + 2 * kPanelRows, stride);
  }

  static void values(const uint8_t* from, float* x) {
    const float minimum = kt::f16_to_float(get<uint16_t>(from + 2));
    nibble_values(from + 4, kt::f16_to_float(get<uint16_t>(from)), 0, minimum, x);
  }
  static void put_header(std::byte* header, int lane, uint16_t d, uint16_t m) {
    put(header, lane, d);
    put(header + 2 * kPanelRows, lane, m);
  }
  static void put_block(std::byte* block, int lane, const int8_t (&q)[kBlock]) {
    put_nibbles(block, lane, reinterpret_cast<const uint8_t*>(q));
  }
  static void from_source(const uint8_t* from, std::byte* header, std::byte* data, int lane) {
    put_header(header, lane, get<uint16_t>(from), get<uint16_t>(from + 2));
    for (int j = 0; j < 4; ++j) put_word(data, j, lane, from + 4 + 4 * j);
  }
  static void from_floats(const float (&x)[kBlock], std::byte* header, int lane,
                          int8_t (&q)[kBlock]) {
    Extent extent;
    extent.low = extent.high = Vec::load(x);  // the minimum need not be 0
    extent.include(x);
    const uint16_t m = f16_scale(extent.min(), extent.finite());
    const float low = kt::f16_to_float(m);
    const uint16_t d = f16_scale((extent.max() - low) / 15.0f, extent.finite());
    put_header(header, lane, d, m);
    if (finite_f16(d) && finite_f16(m)) quantize(x, low, inverse_of(d), 0, 0, 15, q);
  }
  static void pack_row(const PackArgs& args, int64_t row, const Lane& to) {
    pack_gguf_row<Q4_1>(args, row, to);
  }
};

struct Q8_0 : SignedBytes {
  static constexpr FormatInfo kInfo = {
      .name = "q8_0",
      .act_mode = ActMode::int8_g32,
      .data_bytes = kBlock * kPanelRows,
      .header_bytes = 2 * kPanelRows,
      .group = kBlock,
      .source_k = kBlock,
      .source_bytes = 34,
      .source_scales = SourceScales::none,
      .source_zeros = false,
      .takes_floats = true,
      .weight_error = 0.0053f,
      .layout = "header float16 scales [8], data int8 [8][8][4]; value = scale * q"};

  static Vec::F scale(const std::byte* group, int, int64_t stride) {
    return Vec::load_f16(group, stride);
  }

  static void values(const uint8_t* from, float* x) {
    const float scale = kt::f16_to_float(get<uint16_t>(from));
    for (int i = 0; i < kBlock; ++i) x[i] = static_cast<int8_t>(from[2 + i]) * scale;
  }
  static void put_header(std::byte* header, int lane, uint16_t d, uint16_t) {
    put(header, lane, d);
  }
  static void put_block(std::byte* block, int lane, const int8_t (&q)[kBlock]) {
    put_bytes(block, lane, q);
  }
  static void from_source(const uint8_t* from, std::byte* header, std::byte* data, int lane) {
    put_header(header, lane, get<uint16_t>(from), 0);
    put_bytes(data, lane, from + 2);
  }
  static void from_floats(const float (&x)[kBlock], std::byte* header, int lane,
                          int8_t (&q)[kBlock]) {
    Extent extent;
    extent.include(x);
    const uint16_t d = f16_scale(extent.absmax() / 127.0f, extent.finite());
    put_header(header, lane, d, 0);
    if (finite_f16(d)) quantize(x, 0.0f, inverse_of(d), 0, -127, 127, q);
  }
  static void pack_row(const PackArgs& args, int64_t row, const Lane& to) {
    pack_gguf_row<Q8_0>(args, row, to);
  }
};
