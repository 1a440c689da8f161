// SPDX-License-Identifier: Apache-2.0
// What the format structs share: reading float weights block by block, and writing one row's values
// of a block into its lane of a panel. No format here. Textual, included inside a target's
// namespace.
//
// A format struct has
//   kInfo                              the facts (kt/formats.h)
//   pack_row(args, row, panel)         writes one row into its lane; row < 0 is a row of zeros
// where values follow from a checkpoint's bytes alone
//   Source                             of floats: the Element that they are
//   values(from, x)                    of blocks: the source_k floats that one stands for
// and, for float formats,
//   Block                           a block's weights: set(block, stride), then load4(k, w) gives
//                                   k .. k + 3 of every lane as floats; k is a multiple of 4
//   kScaled                         value = scale(group, sub, stride) * weight
// or, for integer formats,
//   unpack(block, stride, w)        8 vectors of bytes: w[j] holds k = 4j .. 4j + 3 of each lane
//   scale(group, sub, stride)       value = scale * (dot product of bytes - offset) ...
//   operands(group, sub, stride)    what else a block needs: offset, sub-scales or minimum
//   kHasMinimum                     operands are the minimum: value = ... + minimum
//   kHasHalves                      operands are the int16 scales of a block's halves
// for few rows
//   dot(products, sums, operands)   the exact int32 dot product with 32 activations, less offset;
//                                   products (block_int-inl.h) multiply w as s8, u4, u5 or u6
// and for many
//   center(operands, w)             takes the offset from the bytes themselves
//   kMagnitude                      the largest magnitude of what center() leaves
// where block and group point at a block's data and at its group's header, sub counts the blocks of
// a group, and stride is the distance of the panels that one vector spans: run_bytes() of the data,
// header_bytes of headers.

// Row `row` of a float matrix, 32 values at a time; beyond its end, and for row < 0, zeros.
struct FloatRow {
  const void* weight;
  DType dtype;
  int64_t row;
  int k;

  void load(int block, float (&x)[kBlock]) const {
    const int begin = block * kBlock;
    const int left = row < 0 ? 0 : k - begin < kBlock ? k - begin : kBlock;
    with_element(dtype, [&](auto element) {
      using E = decltype(element);
      const auto* from = static_cast<const typename E::T*>(weight) + row * k + begin;
      for (int i = 0; i < kBlock; i += Vec::kLanes) {
        const int width = left - i;
        Vec::store(x + i, width >= Vec::kLanes ? E::load(from + i)
                          : width > 0          ? E::load_n(from + i, width)
                                               : Vec::zero());
      }
    });
  }
};

inline FloatRow float_row(const PackArgs& args, int64_t row) {
  return {args.weight, args.dtype, row, args.into.k};
}

// One row's place in a panel of a bundle.
struct Lane {
  std::byte* bundle;
  int panel, lane;
  FormatInfo facts;
  int64_t per_group;  // blocks

  std::byte* header(int64_t group) const {
    return bundle + group * group_bytes() + panel * facts.header_bytes;
  }
  std::byte* block(int64_t block) const {
    return bundle + block / per_group * group_bytes() + facts.bundle_header_bytes() +
           block % per_group * facts.bundle_data_bytes() + panel * facts.run_bytes();
  }

 private:
  int64_t group_bytes() const {
    return facts.bundle_header_bytes() + per_group * facts.bundle_data_bytes();
  }
};

// 4 bytes of K of one row; `word` counts them within a block.
inline void put_word(std::byte* block, int word, int lane, const void* four) {
  std::memcpy(block + (word * kPanelRows + lane) * 4, four, 4);
}

inline void put_bytes(std::byte* block, int lane, const void* q) {  // 32 values, 8 words
  for (int j = 0; j < 8; ++j) put_word(block, j, lane, static_cast<const uint8_t*>(q) + 4 * j);
}

// 32 values of 4 bits, those at `shift` in 32 bytes, as 4 words: byte 4j + b holds element 4j + b
// low and the one 16 further high, so that masking (and shifting by 4) yields 8 vectors of bytes
// without a shuffle.
inline void put_nibbles(std::byte* block, int lane, const uint8_t* q, int shift = 0) {
  constexpr uint64_t kNibbles = 0x0f0f0f0f0f0f0f0f;
  uint64_t low[2], high[2];
  std::memcpy(low, q, 16);
  std::memcpy(high, q + 16, 16);
  for (int i = 0; i < 2; ++i)
    low[i] = (low[i] >> shift & kNibbles) | (high[i] >> shift & kNibbles) << 4;
  for (int j = 0; j < 4; ++j)
    put_word(block, j, lane, reinterpret_cast<const uint8_t*>(low) + 4 * j);
}

template <class T>
inline void put(std::byte* array, int index, T value) {
  std::memcpy(array + static_cast<int64_t>(index) * sizeof(T), &value, sizeof(T));
}

template <class T>
inline T get(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// Parts that several formats are made of, to be inherited.
struct FloatWeights {
  static constexpr bool kInteger = false, kScaled = false;
  // Of weights that load4 reads as they lie, the panels of a bundle take turns after its 4 of K.
  static constexpr int kRun = 4;
  struct PackedBlock {  // weights that need no preparation
    const std::byte* data;
    int64_t stride;

    void set(const std::byte* block, int64_t panel_stride) { data = block, stride = panel_stride; }
  };
};

struct SignedBytes {  // int8 weights
  static constexpr bool kInteger = true, kHasMinimum = false, kHasHalves = false;
  static constexpr int kMagnitude = 128;
  struct Nothing {};
  static void unpack(const std::byte* block, int64_t stride, Vec::I (&w)[8]) {
    for (int j = 0; j < 8; ++j) w[j] = Vec::load_i(block + 32 * j, stride);
  }
  static Nothing operands(const std::byte*, int, int64_t) { return {}; }
  static void center(Nothing, Vec::I (&)[8]) {}
  template <class Products>
  static Vec::I dot(const Products& products, const int16_t* sums, Nothing) {
    return products.s8(sums);
  }
};

struct Nibbles {
  static constexpr bool kInteger = true, kHasHalves = false;
  static void unpack(const std::byte* block, int64_t stride, Vec::I (&w)[8]) {
    for (int j = 0; j < 4; ++j) {
      const Vec::I nibbles = Vec::load_i(block + 32 * j, stride);
      w[j] = Vec::low_nibbles(nibbles);
      w[j + 4] = Vec::high_nibbles(nibbles);
    }
  }
};

// Bytes above their value by an offset in [0, 127], given in both int16 of each lane.
inline void subtract_bytes(Vec::I offset, Vec::I (&w)[8]) {
  const Vec::I bytes = Vec::or_i(offset, Vec::shift_left<8>(offset));
  for (int j = 0; j < 8; ++j) w[j] = Vec::sub8(w[j], bytes);
}

// Nibbles above their value by an offset in [0, 15], which operands() gives as pairs of int16.
struct OffsetNibbles : Nibbles {
  static constexpr bool kHasMinimum = false;
  static constexpr int kMagnitude = 15;
  static void center(Vec::I offset, Vec::I (&w)[8]) { subtract_bytes(offset, w); }
  template <class Products>
  static Vec::I dot(const Products& products, const int16_t* sums, Vec::I offset) {
    return Vec::subtract_offset(products.u4(), sums, offset);
  }
};

struct MinimumNibbles : Nibbles {
  static constexpr bool kHasMinimum = true;
  static constexpr int kMagnitude = 15;
  static void center(Vec::F, Vec::I (&)[8]) {}
  template <class Products>
  static Vec::I dot(const Products& products, const int16_t*, Vec::F) {
    return products.u4();
  }
};

// Largest magnitude and extremes of some values; a value that is not finite makes `finite` false.
struct Extent {
  Vec::F low = Vec::zero(), high = Vec::zero();
  Vec::F poison = Vec::zero();  // x * 0 is NaN exactly for NaN and infinity

  void include(const float (&x)[kBlock]) {
    for (int i = 0; i < kBlock; i += Vec::kLanes) {
      const Vec::F v = Vec::load(x + i);
      low = Vec::min(low, v);
      high = Vec::max(high, v);
      poison = Vec::fma(v, Vec::zero(), poison);
    }
  }
  float min() const { return -Vec::reduce_max(Vec::neg(low)); }
  float max() const { return Vec::reduce_max(high); }
  float absmax() const { return Vec::reduce_max(Vec::max(high, Vec::neg(low))); }
  float farthest() const { return max() >= -min() ? max() : min(); }  // from 0, with its sign
  bool finite() const { return Vec::reduce_add(poison) == 0.0f; }
};

// q = round((x - shift) * inverse) + offset, limited to [low, high], of 32 values. No fma: every
// target must pack the same bytes, and the portable one would round twice.
inline void quantize(const float (&x)[kBlock], float shift, float inverse, int offset, int low,
                     int high, int8_t (&q)[kBlock]) {
  const Vec::F least = Vec::set1(static_cast<float>(low - offset));
  const Vec::F most = Vec::set1(static_cast<float>(high - offset));
  for (int i = 0; i < kBlock; i += Vec::kLanes) {
    const Vec::F scaled =
        Vec::mul(Vec::sub(Vec::load(x + i), Vec::set1(shift)), Vec::set1(inverse));
    Vec::store_int8(q + i, Vec::max(Vec::min(scaled, most), least));
  }
  for (int i = 0; i < kBlock; ++i) q[i] = static_cast<int8_t>(q[i] + offset);
}

// Groups of blocks of one row: body(group, first block, end block).
template <class Body>
inline void for_each_group(const PackedMatrix& matrix, Body&& body) {
  const int blocks = matrix.k_padded / kBlock;
  const int per_group = matrix.group_size / kBlock;
  for (int group = 0, begin = 0; begin < blocks; ++group, begin += per_group)
    body(group, begin, begin + per_group < blocks ? begin + per_group : blocks);
}
