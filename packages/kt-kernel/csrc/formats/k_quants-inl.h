// SPDX-License-Identifier: Apache-2.0
// GGUF's K-quants: Q4_K, Q5_K and Q6_K, super-blocks of 256 whose sub-blocks have integer scales
// (block_q4_K … of ggml-common.h). Repacked from a file's bytes; 6-bit scales become bytes.
// Textual, included inside a target's namespace.

inline constexpr int kSuper = 256;
inline constexpr int kSubBlocks = kSuper / kBlock;

// The header of a super-block of Q4_K and Q5_K: float16 d[8], dmin[8], uint8 scales[8 sub][8],
// minima[8 sub][8]; value = d * scale * q - dmin * minimum.
struct KHeader {
  static constexpr int kScales = 4 * kPanelRows;
  static constexpr int kMinima = kScales + kSubBlocks * kPanelRows;
  static constexpr int kBytes = kMinima + kSubBlocks * kPanelRows;

  static Vec::F scale(const std::byte* group, int sub, int64_t stride) {
    return Vec::mul(Vec::load_f16(group, stride),
                    Vec::load_u8(group + kScales + sub * kPanelRows, stride));
  }
  static Vec::F minimum(const std::byte* group, int sub, int64_t stride) {
    return Vec::neg(Vec::mul(Vec::load_f16(group + 2 * kPanelRows, stride),
                             Vec::load_u8(group + kMinima + sub * kPanelRows, stride)));
  }
};

// What a file's super-block of Q4_K or Q5_K begins with: float16 d, dmin, then 8 scales and 8
// minima of 6 bits in 12 bytes.
struct KScales {
  static constexpr int kBytes = 16;
  uint16_t d, dmin;
  uint8_t scales[kSubBlocks], minima[kSubBlocks];

  explicit KScales(const uint8_t* from) : d(get<uint16_t>(from)), dmin(get<uint16_t>(from + 2)) {
    const uint8_t* packed = from + 4;
    for (int sub = 0; sub < 4; ++sub) {
      const int first = packed[sub], second = packed[sub + 4], third = packed[sub + 8];
      scales[sub] = static_cast<uint8_t>(first & 63);
      minima[sub] = static_cast<uint8_t>(second & 63);
      scales[sub + 4] = static_cast<uint8_t>((third & 15) | (first >> 6) << 4);
      minima[sub + 4] = static_cast<uint8_t>((third >> 4) | (second >> 6) << 4);
    }
  }
  void put_to(std::byte* header, int lane) const {
    put(header, lane, d);
    put(header + 2 * kPanelRows, lane, dmin);
    for (int sub = 0; sub < kSubBlocks; ++sub) {
      put(header + KHeader::kScales, sub * kPanelRows + lane, scales[sub]);
      put(header + KHeader::kMinima, sub * kPanelRows + lane, minima[sub]);
    }
  }
  float scale(int sub) const { return kt::f16_to_float(d) * scales[sub]; }
  float minimum(int sub) const { return kt::f16_to_float(dmin) * minima[sub]; }
};

// body(source bytes, header, data of a sub-block) for every super-block of a row.
template <class Struct, class Body>
inline void for_each_super(const PackArgs& args, int64_t row, const Lane& to, Body&& body) {
  constexpr FormatInfo kInfo = Struct::kInfo;
  const int supers = args.into.k / kSuper;
  const auto* from =
      static_cast<const uint8_t*>(args.weight) + row * int64_t{supers} * kInfo.source_bytes;
  static constexpr uint8_t kZeros[kInfo.source_bytes] = {};
  for (int64_t super = 0; super < supers; ++super)
    body(row < 0 ? kZeros : from + super * kInfo.source_bytes, to.header(super),
         [&](int sub) { return to.block(super * kSubBlocks + sub); });
}

struct Q4_K : MinimumNibbles {
  static constexpr FormatInfo kInfo = {
      .name = "q4_k",
      .act_mode = ActMode::int8_g32,
      .data_bytes = kBlock * kPanelRows / 2,
      .header_bytes = KHeader::kBytes,
      .group = kSuper,
      .source_k = kSuper,
      .source_bytes = 144,
      .source_scales = SourceScales::none,
      .source_zeros = false,
      .takes_floats = false,
      .weight_error = 0.078f,
      .layout =
          "header float16 d [8], dmin [8], uint8 scales [8][8], minima [8][8]; "
          "data as int4; value = d * scale * q - dmin * minimum"};

  static Vec::F scale(const std::byte* group, int sub, int64_t stride) {
    return KHeader::scale(group, sub, stride);
  }
  static Vec::F operands(const std::byte* group, int sub, int64_t stride) {
    return KHeader::minimum(group, sub, stride);
  }
  static void pack_row(const PackArgs& args, int64_t row, const Lane& to) {
    for_each_super<Q4_K>(args, row, to, [&](const uint8_t* from, std::byte* header, auto data) {
      KScales(from).put_to(header, to.lane);
      for (int sub = 0; sub < kSubBlocks; ++sub)
        put_nibbles(data(sub), to.lane, nibbles(from, sub), sub % 2 * 4);
    });
  }
  static void values(const uint8_t* from, float* x) {
    const KScales scales(from);
    for (int sub = 0; sub < kSubBlocks; ++sub) {
      const float scale = scales.scale(sub), minimum = scales.minimum(sub);
      for (int i = 0; i < kBlock; ++i) {
        const int q = nibbles(from, sub)[i] >> (sub % 2 * 4) & 15;
        x[sub * kBlock + i] = static_cast<float>(q) * scale - minimum;
      }
    }
  }

 private:
  static const uint8_t* nibbles(const uint8_t* from, int sub) {  // two sub-blocks share 32 bytes
    return from + KScales::kBytes + sub / 2 * kBlock;
  }
};

struct Q5_K : Nibbles {
  static constexpr FormatInfo kInfo = {
      .name = "q5_k",
      .act_mode = ActMode::int8_g32,
      .data_bytes = kBlock * kPanelRows * 5 / 8,
      .header_bytes = KHeader::kBytes,
      .group = kSuper,
      .source_k = kSuper,
      .source_bytes = 176,
      .source_scales = SourceScales::none,
      .source_zeros = false,
      .takes_floats = false,
      .weight_error = 0.038f,
      .layout =
          "header as q4_k; data uint4 as int4, then uint8 [8][4] whose bit j is "
          "the fifth bit of K = 4j .. 4j + 3; value as q4_k"};
  static constexpr bool kHasMinimum = true;
  static constexpr int kMagnitude = 31;

  static void unpack(const std::byte* block, int64_t stride, Vec::I (&w)[8]) {
    Nibbles::unpack(block, stride, w);
    const Vec::I bits = Vec::load_i(block + 128, stride);
    const Vec::I fifth = Vec::set1_i(0x10101010);
    w[0] = Vec::or_i(w[0], Vec::and_i(Vec::shift_left<4>(bits), fifth));
    w[1] = Vec::or_i(w[1], Vec::and_i(Vec::shift_left<3>(bits), fifth));
    w[2] = Vec::or_i(w[2], Vec::and_i(Vec::shift_left<2>(bits), fifth));
    w[3] = Vec::or_i(w[3], Vec::and_i(Vec::shift_left<1>(bits), fifth));
    w[4] = Vec::or_i(w[4], Vec::and_i(bits, fifth));
    w[5] = Vec::or_i(w[5], Vec::and_i(Vec::shift_right<1>(bits), fifth));
    w[6] = Vec::or_i(w[6], Vec::and_i(Vec::shift_right<2>(bits), fifth));
    w[7] = Vec::or_i(w[7], Vec::and_i(Vec::shift_right<3>(bits), fifth));
  }
  static void center(Vec::F, Vec::I (&)[8]) {}
  template <class Products>
  static Vec::I dot(const Products& products, const int16_t*, Vec::F) {
    return products.u5();
  }
  static Vec::F scale(const std::byte* group, int sub, int64_t stride) {
    return KHeader::scale(group, sub, stride);
  }
  static Vec::F operands(const std::byte* group, int sub, int64_t stride) {
    return KHeader::minimum(group, sub, stride);
  }
  static void pack_row(const PackArgs& args, int64_t row, const Lane& to) {
    for_each_super<Q5_K>(args, row, to, [&](const uint8_t* from, std::byte* header, auto data) {
      KScales(from).put_to(header, to.lane);
      for (int sub = 0; sub < kSubBlocks; ++sub) {
        std::byte* const block = data(sub);
        put_nibbles(block, to.lane, nibbles(from, sub), sub % 2 * 4);
        uint32_t fifth = 0;
        for (int j = 0; j < kBlock / 4; ++j)
          fifth |= (get<uint32_t>(from + KScales::kBytes + 4 * j) >> sub & 0x01010101) << j;
        put_word(block + 128, 0, to.lane, &fifth);
      }
    });
  }
  static void values(const uint8_t* from, float* x) {
    const KScales scales(from);
    for (int sub = 0; sub < kSubBlocks; ++sub) {
      const float scale = scales.scale(sub), minimum = scales.minimum(sub);
      for (int i = 0; i < kBlock; ++i) {
        const int low = nibbles(from, sub)[i] >> (sub % 2 * 4) & 15;
        const int q = low | (from[KScales::kBytes + i] >> sub & 1) << 4;
        x[sub * kBlock + i] = static_cast<float>(q) * scale - minimum;
      }
    }
  }

 private:
  // Behind the fifth bits; two sub-blocks share 32 bytes.
  static const uint8_t* nibbles(const uint8_t* from, int sub) {
    return from + KScales::kBytes + kBlock + sub / 2 * kBlock;
  }
};

// Scales of int8 per 16, applied to the integer sums: value = d * scale * (q - 32).
struct Q6_K : Nibbles {
  static constexpr int kScales = 2 * kPanelRows;
  static constexpr FormatInfo kInfo = {
      .name = "q6_k",
      .act_mode = ActMode::int8_g32,
      .data_bytes = kBlock * kPanelRows * 6 / 8,
      .header_bytes = kScales + 2 * kSubBlocks * kPanelRows,
      .group = kSuper,
      .source_k = kSuper,
      .source_bytes = 210,
      .source_scales = SourceScales::none,
      .source_zeros = false,
      .takes_floats = false,
      .weight_error = 0.019f,
      .layout =
          "header float16 d [8], int8 scales [16][8]; data uint4 as "
          "int4, then uint8 [2][8][4] whose bit pair j % 4 of the j / 4 th is bits 4 and 5 of "
          "K = 4j .. 4j + 3; value = d * scale * (q - 32)"};
  static constexpr bool kHasMinimum = false, kHasHalves = true;
  static constexpr int kMagnitude = 32;

  static void unpack(const std::byte* block, int64_t stride, Vec::I (&w)[8]) {
    Nibbles::unpack(block, stride, w);
    const Vec::I top = Vec::set1_i(0x30303030);
    for (int half = 0; half < 2; ++half) {
      const Vec::I bits = Vec::load_i(block + 128 + 32 * half, stride);
      Vec::I* const to = w + 4 * half;
      to[0] = Vec::or_i(to[0], Vec::and_i(Vec::shift_left<4>(bits), top));
      to[1] = Vec::or_i(to[1], Vec::and_i(Vec::shift_left<2>(bits), top));
      to[2] = Vec::or_i(to[2], Vec::and_i(bits, top));
      to[3] = Vec::or_i(to[3], Vec::and_i(Vec::shift_right<2>(bits), top));
    }
  }
  // The scales of the two halves of a block, in the low and the high 16 bits of every lane.
  static Vec::I operands(const std::byte* group, int sub, int64_t stride) {
    const std::byte* at = group + kScales + 2 * sub * kPanelRows;
    return Vec::pair_s8(at, at + kPanelRows, stride);
  }
  static void center(Vec::I, Vec::I (&w)[8]) { subtract_bytes(Vec::set1_i(0x00200020), w); }
  template <class Products>
  static Vec::I dot(const Products& products, const int16_t* sums, Vec::I scales) {
    // 32 * scale in either half: at most 32 * 128.
    return Vec::subtract_offset(products.u6(scales), sums, Vec::shift_left<5>(scales));
  }
  static Vec::F scale(const std::byte* group, int, int64_t stride) {
    return Vec::load_f16(group, stride);
  }
  static void pack_row(const PackArgs& args, int64_t row, const Lane& to) {
    for_each_super<Q6_K>(args, row, to, [&](const uint8_t* from, std::byte* header, auto data) {
      put(header, to.lane, get<uint16_t>(from + kScaleAt));
      for (int i = 0; i < 2 * kSubBlocks; ++i)
        put(header + kScales, i * kPanelRows + to.lane, from[kSubScalesAt + i]);
      for (int sub = 0; sub < kSubBlocks; ++sub) {
        const Quarter quarter(from, sub);
        std::byte* const block = data(sub);
        put_nibbles(block, to.lane, quarter.low, quarter.low_shift);
        for (int half = 0; half < 2; ++half) {
          uint32_t pairs = 0;
          for (int j = 0; j < 4; ++j) {
            const auto four = get<uint32_t>(quarter.high + 16 * half + 4 * j);
            pairs |= (four >> quarter.high_shift & 0x03030303) << (2 * j);
          }
          put_word(block + 128 + 32 * half, 0, to.lane, &pairs);
        }
      }
    });
  }
  static void values(const uint8_t* from, float* x) {
    const float d = kt::f16_to_float(get<uint16_t>(from + kScaleAt));
    for (int sub = 0; sub < kSubBlocks; ++sub) {
      const Quarter quarter(from, sub);
      for (int i = 0; i < kBlock; ++i) {
        const int low = quarter.low[i] >> quarter.low_shift & 15;
        const int q = low | (quarter.high[i] >> quarter.high_shift & 3) << 4;
        x[sub * kBlock + i] = static_cast<float>(q - 32);
      }
      for (int half = 0; half < 2; ++half) {
        const float scale = d * static_cast<int8_t>(from[kSubScalesAt + 2 * sub + half]);
        float* const at = x + sub * kBlock + half * kSumGroup;
        for (int i = 0; i < kSumGroup; ++i) at[i] *= scale;
      }
    }
  }

 private:
  static constexpr int kHighAt = 128, kSubScalesAt = 192, kScaleAt = 208;

  // Where a file's super-block has the bits of a sub-block: within 128 values, quarter r takes its
  // low bits from half r % 2 of 64 bytes, nibble r / 2, and its high bits from pair r of 32 bytes.
  struct Quarter {
    const uint8_t *low, *high;
    int low_shift, high_shift;

    Quarter(const uint8_t* from, int sub)
        : low(from + 64 * (sub / 4) + 32 * (sub % 2)),
          high(from + kHighAt + 32 * (sub / 4)),
          low_shift(sub % 4 / 2 * 4),
          high_shift(2 * (sub % 4)) {}
  };
};
