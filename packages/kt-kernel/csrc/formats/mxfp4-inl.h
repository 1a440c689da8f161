// SPDX-License-Identifier: Apache-2.0
// mxfp4: 4-bit floats (e2m1) with a power-of-two scale per 32 (OCP Microscaling Formats, 2023), as
// gpt-oss and DeepSeek-V4 publish their experts. Textual, included inside a target's namespace.
//
// Twice an e2m1 value is an integer of magnitude at most 12, so the weights are looked up as
// 2 * value + 12, in [0, 24], and multiplied by the 5-bit dot product.

struct Mxfp4 : Nibbles {
  static constexpr FormatInfo kInfo = {
      .name = "mxfp4",
      .act_mode = ActMode::int8_g32,
      .data_bytes = kBlock * kPanelRows / 2,
      .header_bytes = kPanelRows,
      .group = kBlock,
      .source_k = kBlock,
      .source_bytes = 16,
      .source_scales = SourceScales::exponent,
      .source_zeros = false,
      .takes_floats = true,
      .weight_error = 0.115f,
      .layout = "header e8m0 scales [8], data e2m1 as int4; value = 2^(scale - 127) * e2m1"};
  static constexpr bool kHasMinimum = false;
  static constexpr int kMagnitude = 12;
  static constexpr uint8_t kTwicePlus12[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                               12, 11, 10, 9,  8,  6,  4,  0};

  static void unpack(const std::byte* block, int64_t stride, Vec::I (&w)[8]) {
    Nibbles::unpack(block, stride, w);
    for (int j = 0; j < 8; ++j) w[j] = Vec::lookup(kTwicePlus12, w[j]);
  }
  static Vec::I operands(const std::byte*, int, int64_t) { return Vec::set1_i(0x000c000c); }
  static void center(Vec::I offset, Vec::I (&w)[8]) { subtract_bytes(offset, w); }
  template <class Products>
  static Vec::I dot(const Products& products, const int16_t* sums, Vec::I offset) {
    return Vec::subtract_offset(products.u5(), sums, offset);
  }
  static Vec::F scale(const std::byte* group, int, int64_t stride) {
    return Vec::mul(Vec::load_e8m0(group, stride), Vec::set1(0.5f));
  }
  static void pack_row(const PackArgs& args, int64_t row, const Lane& to) {
    const int k = args.into.k, blocks = args.into.k_padded / kBlock;
    for (int block = 0; block < blocks; ++block) {
      uint8_t q[kBlock] = {}, exponent = 0;
      if (row >= 0 && args.quantized) {
        const auto* pairs = static_cast<const uint8_t*>(args.weight) + row * (k / 2) + block * 16;
        exponent = static_cast<const uint8_t*>(args.scales)[row * (k / kBlock) + block];
        for (int i = 0; i < kBlock / 2; ++i) {  // two neighbours per byte, the first one low
          q[2 * i] = pairs[i] & 15;
          q[2 * i + 1] = pairs[i] >> 4;
        }
      } else if (row >= 0) {
        float x[kBlock];
        float_row(args, row).load(block, x);
        exponent = round_to_mxfp4(x, q);
      }
      put(to.header(block), to.lane, exponent);
      put_nibbles(to.block(block), to.lane, q);
    }
  }

  // The specification's conversion: the scale is 2^(floor(log2 absmax) - 2), 2 being the largest
  // exponent of e2m1; values round to nearest, ties to the even code, and saturate at 6.
  static uint8_t round_to_mxfp4(const float (&x)[kBlock], uint8_t (&q)[kBlock]) {
    Extent extent;
    extent.include(x);
    if (!extent.finite()) return 255;  // e8m0's NaN
    const int exponent = static_cast<int>(kt::bits_of(extent.absmax()) >> 23) - 2;
    if (exponent <= 0) return 0;  // below 2^-125: zeros, the scale itself would not be normal
    const float inverse = kt::float_from_bits(static_cast<uint32_t>(254 - exponent) << 23);
    constexpr float kMiddles[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
    for (int i = 0; i < kBlock; ++i) {
      const float value = x[i] * inverse, size = value < 0 ? -value : value;
      uint8_t code = 0;
      for (int m = 0; m < 7; ++m) code += size > kMiddles[m] || (size == kMiddles[m] && m % 2 == 1);
      q[i] = static_cast<uint8_t>(code | (value < 0 ? 8 : 0));
    }
    return static_cast<uint8_t>(exponent);
  }
};
