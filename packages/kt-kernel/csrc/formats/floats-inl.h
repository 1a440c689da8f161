// SPDX-License-Identifier: Apache-2.0
// Weights that are multiplied as floats: float32, bf16, f16 and fp8 (e4m3 with a float scale per
// 128 x 128, as DeepSeek-V3 publishes). Textual, included inside a target's namespace.

struct Float32 : FloatWeights {
  using Source = Element<DType::f32>;
  static constexpr FormatInfo kInfo = {.name = "float32",
                                       .act_mode = ActMode::f32,
                                       .data_bytes = kBlock * kPanelRows * 4,
                                       .run = kRun,
                                       .header_bytes = 0,
                                       .group = 0,
                                       .source_k = 0,
                                       .source_bytes = 0,
                                       .source_scales = SourceScales::none,
                                       .source_zeros = false,
                                       .takes_floats = true,
                                       .weight_error = 0.0f,
                                       .layout = "data float32 [4][8]"};

  struct Block : PackedBlock {
    void load4(int k, Vec::F (&w)[4]) const {
      for (int i = 0; i < 4; ++i) w[i] = Vec::load_f32(data + kInfo.run_offset(k) + i * 32, stride);
    }
  };
  static void pack_row(const PackArgs& args, int64_t row, const Lane& to) {
    const FloatRow from = float_row(args, row);
    for (int block = 0; block < args.into.k_padded / kBlock; ++block) {
      float x[kBlock];
      from.load(block, x);
      std::byte* const data = to.block(block);
      for (int i = 0; i < kBlock; ++i)
        put(data + kInfo.run_offset(i), i % kRun * kPanelRows + to.lane, x[i]);
    }
  }
};

// Pairs of K in a word: what the bfloat16 dot products of newer CPUs multiply.
struct Bf16 : FloatWeights {
  using Source = Element<DType::bf16>;
  static constexpr FormatInfo kInfo = {.name = "bf16",
                                       .act_mode = ActMode::bf16,
                                       .data_bytes = kBlock * kPanelRows * 2,
                                       .run = kRun,
                                       .header_bytes = 0,
                                       .group = 0,
                                       .source_k = 0,
                                       .source_bytes = 0,
                                       .source_scales = SourceScales::none,
                                       .source_zeros = false,
                                       .takes_floats = true,
                                       .weight_error = 0.00166f,
                                       .layout = "data bfloat16 [2][8][2]"};

  // Two neighbours in K of a block, of all lanes.
  static Vec::I load_pair(const std::byte* block, int pair) {
    const int k = 2 * pair;
    return Vec::load_i(block + kInfo.run_offset(k) + k % kRun / 2 * 32, kInfo.run_bytes());
  }
  struct Block : PackedBlock {
    void load4(int k, Vec::F (&w)[4]) const {
      for (int i = 0; i < 4; i += 2) {
        const Vec::I pairs = load_pair(data, (k + i) / 2);
        w[i] = Vec::even_bf16(pairs);
        w[i + 1] = Vec::odd_bf16(pairs);
      }
    }
  };
  static void pack_row(const PackArgs& args, int64_t row, const Lane& to) {
    const FloatRow from = float_row(args, row);
    for (int block = 0; block < args.into.k_padded / kBlock; ++block) {
      float x[kBlock];
      uint16_t rounded[kBlock];
      from.load(block, x);
      for (int i = 0; i < kBlock; i += Vec::kLanes) Vec::store_bf16(rounded + i, Vec::load(x + i));
      std::byte* const data = to.block(block);
      for (int i = 0; i < kBlock; i += 2)
        put_word(data + kInfo.run_offset(i), i % kRun / 2, to.lane, rounded + i);
    }
  }
};

struct F16 : FloatWeights {
  using Source = Element<DType::f16>;
  static constexpr FormatInfo kInfo = {.name = "f16",
                                       .act_mode = ActMode::f32,
                                       .data_bytes = kBlock * kPanelRows * 2,
                                       .run = kRun,
                                       .header_bytes = 0,
                                       .group = 0,
                                       .source_k = 0,
                                       .source_bytes = 0,
                                       .source_scales = SourceScales::none,
                                       .source_zeros = false,
                                       .takes_floats = true,
                                       .weight_error = 0.00021f,
                                       .layout = "data float16 [4][8]"};

  struct Block : PackedBlock {
    void load4(int k, Vec::F (&w)[4]) const {
      for (int i = 0; i < 4; ++i) w[i] = Vec::load_f16(data + kInfo.run_offset(k) + i * 16, stride);
    }
  };
  static void pack_row(const PackArgs& args, int64_t row, const Lane& to) {
    const FloatRow from = float_row(args, row);
    for (int block = 0; block < args.into.k_padded / kBlock; ++block) {
      float x[kBlock];
      uint16_t rounded[kBlock];
      from.load(block, x);
      for (int i = 0; i < kBlock; i += Vec::kLanes) Vec::store_f16(rounded + i, Vec::load(x + i));
      std::byte* const data = to.block(block);
      for (int i = 0; i < kBlock; ++i)
        put(data + kInfo.run_offset(i), i % kRun * kPanelRows + to.lane, rounded[i]);
    }
  }
};

// e4m3 without infinities (OCP OFP8; Micikevicius et al. 2022): value = scale * e4m3. The panel
// keeps one float per 128 of K, because 8 rows lie in one tile of 128, and 4 bytes of zero, so that
// data of 32 bytes never lie in two lines.
struct Fp8 : FloatWeights {
  static constexpr int kTile = 128;
  static constexpr FormatInfo kInfo = {
      .name = "fp8",
      .act_mode = ActMode::bf16,
      .data_bytes = kBlock * kPanelRows,
      .header_bytes = 8,
      .group = kTile,
      .source_k = 1,
      .source_bytes = 1,
      .source_scales = SourceScales::tile,
      .source_zeros = false,
      .takes_floats = false,
      .weight_error = 0.026f,
      .layout =
          "header float32 scale, float32 0; data e4m3 [32][8], bits s m0 e3..e0 m2 m1; value = "
          "scale * e4m3"};

  static constexpr bool kScaled = true;

  using Block = Vec::Fp8Block;
  static Vec::F scale(const std::byte* group, int, int64_t stride) {
    // What Fp8Block divides by is exact in the scale.
    return Vec::mul(Vec::load_each(group, stride), Vec::set1(256.0f));
  }
  static void pack_row(const PackArgs& args, int64_t row, const Lane& to) {
    const int k = args.into.k;
    const int64_t tiles = (k + kTile - 1) / kTile;
    const auto* from = static_cast<const uint8_t*>(args.weight) + row * k;
    const auto* scales = static_cast<const float*>(args.scales) + row / kTile * tiles;
    for (int64_t tile = 0; tile < tiles && row >= 0; ++tile) put(to.header(tile), 0, scales[tile]);
    for (int begin = 0; begin < args.into.k_padded; begin += kBlock) {
      std::byte* const data = to.block(begin / kBlock);
      for (int i = 0; i < kBlock; ++i) {
        const uint8_t value = row >= 0 && begin + i < k ? from[begin + i] : 0;
        // The lowest bit behind the sign: then high and low byte of the f16 that is 2^-8 times the
        // value are made with one and with two operations.
        data[i * kPanelRows + to.lane] =
            static_cast<std::byte>((value & 0x80) | (value & 0x01) << 6 | (value & 0x7e) >> 1);
      }
    }
  }
};
