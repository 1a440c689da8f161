// SPDX-License-Identifier: Apache-2.0
// The arithmetic under attention: packing keys or values into panels, and the small matrix product
// of a tile with them. No softmax, no pages. Textual, included inside a target's namespace.

// Keys relative to the first of a block or split.
struct KeyRange {
  int begin, end;
  bool operator==(const KeyRange& other) const { return begin == other.begin && end == other.end; }
};

// A panel is two vectors wide: its rows are what one step of multiply_tile loads.
constexpr int kPanel = 2 * Vec::kLanes;
static_assert(kHeadPad % kPanel == 0 && kKeyBlock % kPanel == 0);

// From panel to panel of K and V, in floats. One row more than there is: a power of two would put
// the same row of all panels into one set of the first-level cache.
inline int64_t key_stride(int head_dim) { return static_cast<int64_t>(head_dim + 1) * kPanel; }
constexpr int64_t kValueStride = (kKeyBlock + 1) * kPanel;

// Panels of V that are packed together: as many as a single row takes. 33 KiB.
constexpr int kValuePanels = 4;

// Asks for the head at `place` (< 0: none): keys lie num_kv_heads heads apart and pages anywhere,
// which no hardware prefetcher follows. kAhead keys are packed in about the latency of memory.
constexpr int kAhead = 8;
template <class T>
inline void prefetch_head(const T* cache, int64_t place, int head_dim) {
  if (place < 0) return;
  const auto* head = reinterpret_cast<const char*>(cache + place * head_dim);
  for (int64_t i = 0; i < static_cast<int64_t>(sizeof(T)) * head_dim; i += 64)
    __builtin_prefetch(head + i);
}

// Turns keys of bf16 in pairs of elements, which are parted afterwards: half the shuffles, for
// which processors have one port. 2 * kLanes elements of the kLanes keys at `from` (< 0: zeros).
inline void turn_pairs(const uint16_t* cache, const int64_t* from, int head_dim, float* to) {
  Vec::F rows[Vec::kLanes];
  for (int j = 0; j < Vec::kLanes; ++j)
    rows[j] = from[j] < 0 ? Vec::zero() : Vec::as_float(Vec::load_i(cache + from[j] * head_dim));
  Vec::transpose(rows);
  for (int j = 0; j < Vec::kLanes; ++j) {
    Vec::store(to + 2 * j * kPanel, Vec::even_bf16(Vec::as_int(rows[j])));
    Vec::store(to + (2 * j + 1) * kPanel, Vec::odd_bf16(Vec::as_int(rows[j])));
  }
}

// K: [panel of keys][head_dim][kPanel keys], so that a vector holds one element of kLanes keys.
// Packs `panels` panels of the keys whose heads lie at `places`, zeros for none (< 0).
template <class E>
inline void pack_keys(const typename E::T* cache, const int64_t* places, int panels, int head_dim,
                      float* out) {
  constexpr bool kPairs = std::is_same_v<E, Element<DType::bf16>>;
  const int in_pairs = kPairs ? head_dim / (2 * Vec::kLanes) * (2 * Vec::kLanes) : 0;
  for (int key = 0; key < panels * kPanel; key += Vec::kLanes) {
    const int64_t* from = places + key;
    for (int j = 0; j < Vec::kLanes; ++j) prefetch_head(cache, from[j + kAhead], head_dim);
    float* to = out + key / kPanel * key_stride(head_dim) + key % kPanel;
    if constexpr (kPairs) {
      for (int i = 0; i < in_pairs; i += 2 * Vec::kLanes)
        turn_pairs(cache + i, from, head_dim, to + i * kPanel);
    }
    for_each_vector(head_dim - in_pairs, [&](int i, auto lanes) {
      i += in_pairs;
      Vec::F rows[Vec::kLanes];
      for (int j = 0; j < Vec::kLanes; ++j)
        rows[j] = from[j] < 0 ? Vec::zero() : load_lanes<E>(cache + from[j] * head_dim + i, lanes);
      Vec::transpose(rows);
      for (int j = 0; j < lanes; ++j) Vec::store(to + (i + j) * kPanel, rows[j]);
    });
  }
}

// V: [panel of elements][kKeyBlock keys][kPanel elements]. Packs the panels [begin, end) of the
// keys `keys`, which have places.
template <class E>
inline void pack_values(const typename E::T* cache, const int64_t* places, KeyRange keys, int begin,
                        int end, int head_dim, float* out) {
  for (int panel = begin; panel < end; ++panel, out += kValueStride) {
    const int left = head_dim - panel * kPanel;
    for (int key = keys.begin; key < keys.end; ++key) {
      // The first panel asks for whole heads.
      if (panel == 0) prefetch_head(cache, places[key + kAhead], head_dim);
      const typename E::T* from = cache + places[key] * head_dim + panel * kPanel;
      float* to = out + key * kPanel;
      if (left >= kPanel) {
        Vec::store(to, E::load(from));
        Vec::store(to + Vec::kLanes, E::load(from + Vec::kLanes));
      } else {
        const int first = std::min(left, Vec::kLanes);
        Vec::store(to, E::load_n(from, first));
        Vec::store(to + Vec::kLanes, E::load_n(from + first, left - first));
      }
    }
  }
}

// a [rows][a_stride] times b [panels][b_stride], whose panels are [depth][kPanel].
struct TileProduct {
  const float* a;
  int64_t a_stride;
  const float* b;
  int64_t b_stride;
  int depth;
  const float* factors;  // c = c * factors[row] + a * b, or null: c = a * b
  float* c;              // [rows][c_stride]
  int64_t c_stride;
};

// kRows rows and kPanels panels held in registers. An element's sum runs over depth in order
// whatever the shape.
template <int kRows, int kPanels>
inline void multiply_tile(const TileProduct& x, int row, int panel) {
  constexpr int kVectors = 2 * kPanels;
  const float* a = x.a + row * x.a_stride;
  const float* b = x.b + panel * x.b_stride;
  float* c = x.c + row * x.c_stride + static_cast<int64_t>(panel) * kPanel;
  Vec::F sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = x.factors == nullptr ? Vec::zero()
                                       : Vec::mul(Vec::load(c + r * x.c_stride + v * Vec::kLanes),
                                                  Vec::set1(x.factors[row + r]));
  }
#pragma GCC unroll 2  // the loop's own instructions are what keeps fma waiting
  for (int k = 0; k < x.depth; ++k) {
    Vec::F right[kVectors];
    for (int v = 0; v < kVectors; ++v)
      right[v] = Vec::load(b + v / 2 * x.b_stride + k * kPanel + v % 2 * Vec::kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Vec::F left = Vec::set1(a[r * x.a_stride + k]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Vec::fma(left, right[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) Vec::store(c + r * x.c_stride + v * Vec::kLanes, sum[r][v]);
  }
}

// At least eight sums hide the latency of fma (4 cycles, two per cycle): few rows take more panels.
constexpr int tile_panels(int64_t rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

template <int kRows>
inline void multiply_panels(const TileProduct& x, int row, int panels) {
  constexpr int kPanels = tile_panels(kRows);
  int panel = 0;
  for (; panel + kPanels <= panels; panel += kPanels) multiply_tile<kRows, kPanels>(x, row, panel);
  for (; panel < panels; ++panel) multiply_tile<kRows, 1>(x, row, panel);
}

// `rows` rows, at most kRows, from `row` on.
template <int kRows>
inline void multiply_rows(const TileProduct& x, int rows, int row, int panels) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_rows<kRows - 1>(x, rows, row, panels);
  }
  multiply_panels<kRows>(x, row, panels);
}

// Rows [0, rows) times panels [0, panels).
inline void multiply(const TileProduct& x, int64_t rows, int panels) {
  // 6 rows x 2 vectors are 12 sums, 2 of b and 1 of a: 15 of 16 registers. AVX-512 has 32, and
  // twice the rows for each load of b take a tenth less time there.
  constexpr int kRows = Vec::kLanes < 16 ? 6 : 12;
  const int64_t tiles = (rows + kRows - 1) / kRows;  // of nearly equal height
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = tile * rows / tiles, next = (tile + 1) * rows / tiles;
    multiply_rows<kRows>(x, static_cast<int>(next - row), static_cast<int>(row), panels);
  }
}
