// SPDX-License-Identifier: Apache-2.0
// prepare_rows, pack and gemm of every weight format. The integer formats get activations that are
// integers and scales of 1, so that sums are integers below 2^24: exact in float, whatever rounds
// them, and their hashes the same on all targets. The float formats agree within a target.
#include <algorithm>

#include "cases.h"
#include "kt/aligned_buffer.h"

namespace kt::selftest {
namespace {

constexpr int kN = 27;   // outputs: a ragged last panel
constexpr int kK = 256;  // a super-block of the K-quants
constexpr int kGroup = 64;
constexpr int kRows[] = {1, 2, 7, kTileRows};

const struct {
  ActMode mode;
  const char* name;
} kModes[] = {{ActMode::f32, "f32"}, {ActMode::bf16, "bf16"}, {ActMode::int8_g32, "int8_g32"}};

// Rows prepared for a gemm, and the memory that they lie in.
struct Rows {
  AlignedBuffer memory;
  ActTile tile;

  Rows(const Kernels& table, ActMode mode, int rows, const std::vector<float>& x)
      : memory(rows * act_row_bytes(mode, kK)), tile(act_tile(mode, rows, kK, memory.data())) {
    table.prepare_rows({x.data(), DType::f32, kK, kK, tile, {0, rows}, {0, kK / kBlock}});
  }
};

uint64_t hash_of(const ActTile& tile) {
  Hash hash;
  const size_t elements = static_cast<size_t>(tile.rows) * tile.k_padded;
  if (tile.mode != ActMode::int8_g32) {
    hash.add(static_cast<const float*>(tile.data), elements);
    return hash.value();
  }
  hash.add(tile.data, elements);
  hash.add(tile.scales, elements / kBlock);
  hash.add(tile.scaled_sums, elements / kBlock);
  hash.add(tile.sums, elements / kSumGroup * sizeof(int16_t));
  return hash.value();
}

// Integers in [-127, 127], the largest in every block, so that a block's scale is 1. Most are
// small, to keep sums small; the last two rows are the extremes that overflow first.
std::vector<float> integer_rows(Random& random, int rows) {
  std::vector<float> x(static_cast<size_t>(rows) * kK);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(i % kBlock == i / kBlock % kBlock ? 127 : random.below(31) - 15);
  for (int extreme = 0; extreme < std::min(2, rows - 1); ++extreme)
    std::fill_n(x.end() - (extreme + 1) * kK, kK, extreme == 0 ? 127.0f : -127.0f);
  return x;
}

// The float16 scales inside a row's blocks, which must be 1: where, in bytes from the block's
// begin.
std::vector<int> unit_scales(Format format) {
  switch (format) {
    case Format::q4_0:
    case Format::q8_0:
      return {0};
    case Format::q4_1:
    case Format::q4_k:
    case Format::q5_k:
      return {0, 2};
    case Format::q6_k:
      return {208};
    default:
      return {};
  }
}

// A weight matrix as a checkpoint holds it.
struct Source {
  std::vector<float> floats;
  std::vector<uint8_t> bytes, zeros, exponents;
  std::vector<float> scales;
};

Source source_of(Format format, Random& random) {
  const FormatInfo& facts = info(format);
  Source source;
  if (facts.source_k == 0) {
    source.floats = random.reals(kN * kK);
    return source;
  }
  const int row_bytes = kK / facts.source_k * facts.source_bytes;
  const bool four_bits = facts.source_k == 1 && facts.data_bytes == kBlock * kPanelRows / 2;
  source.bytes.resize(static_cast<size_t>(kN) * row_bytes);
  for (size_t i = 0; i < source.bytes.size(); ++i) {
    const bool extreme = i / row_bytes == kN - 1;  // a row of the largest values
    uint8_t byte = extreme ? 0x7f : static_cast<uint8_t>(random.next());
    if (four_bits) byte &= 15;
    // No format has -128; e4m3 has NaN codes, at 0x7f and 0xff.
    if (byte == 0x80 || (format == Format::fp8 && (byte & 0x7f) == 0x7f)) byte ^= 1;
    source.bytes[i] = byte;
  }
  for (const int at : unit_scales(format))
    for (size_t block = 0; block < source.bytes.size(); block += facts.source_bytes) {
      source.bytes[block + at] = 0x00;
      source.bytes[block + at + 1] = 0x3c;
    }
  source.scales.assign(kN * (kK / kBlock), 1.0f);      // as many as any format takes
  source.exponents.assign(source.scales.size(), 128);  // 2: twice an e2m1 value is an integer
  source.zeros.resize(source.scales.size());
  for (uint8_t& zero : source.zeros) zero = static_cast<uint8_t>(random.below(16));
  return source;
}

void pack(const Kernels& table, const Source& source, const PackedMatrix& into) {
  const FormatInfo& facts = info(into.format);
  const bool quantized = !source.bytes.empty();
  const void* scales = facts.source_scales == SourceScales::none ? nullptr
                       : facts.source_scales == SourceScales::exponent
                           ? static_cast<const void*>(source.exponents.data())
                           : source.scales.data();
  table.pack[static_cast<int>(into.format)](
      {quantized ? static_cast<const void*>(source.bytes.data()) : source.floats.data(),
       DType::f32,
       quantized,
       quantized ? scales : nullptr,
       facts.source_zeros ? source.zeros.data() : nullptr,
       into,
       {0, into.n_padded / kPanelRows}});
}

void run_format(const Kernels& table, Format format, const Report& report) {
  const FormatInfo& facts = info(format);
  Random random(static_cast<uint64_t>(format) + 100);
  PackedMatrix matrix = shape_matrix("selftest", format, kN, kK, kGroup);
  const AlignedBuffer memory(matrix_bytes(matrix));
  matrix.data = memory.data();
  if (facts.takes_floats) {
    Source floats;
    floats.floats = random.reals(kN * kK);
    pack(table, floats, matrix);
    Hash hash;
    hash.add(static_cast<const void*>(memory.data()), memory.size());
    report("pack_floats", facts.name, hash.value());
  }
  pack(table, source_of(format, random), matrix);
  Hash packed, products;
  packed.add(static_cast<const void*>(memory.data()), memory.size());
  report("pack", facts.name, packed.value());

  for (const int rows : kRows) {
    const bool integers = facts.act_mode == ActMode::int8_g32;
    const std::vector<float> x = integers ? integer_rows(random, rows) : random.reals(rows * kK);
    const Rows prepared(table, facts.act_mode, rows, x);
    std::vector<float> c(static_cast<size_t>(rows) * matrix.n_padded);
    table.gemm[static_cast<int>(format)]({prepared.tile,
                                          matrix,
                                          nullptr,
                                          c.data(),
                                          matrix.n_padded,
                                          false,
                                          {0, matrix.n_padded / kPanelRows}});
    for (int row = 0; row < rows; ++row)
      products.add(c.data() + static_cast<size_t>(row) * matrix.n_padded, kN);
  }
  report("gemm", facts.name, products.value());
}

}  // namespace

void run_formats(const Kernels& table, const Report& report) {
  Random random(99);
  for (const auto& [mode, name] : kModes) {
    const Rows rows(table, mode, 5, random.reals(5 * kK));
    report("prepare_rows", name, hash_of(rows.tile));
    const int32_t ids[] = {2, 0, 3};
    AlignedBuffer from(4 * act_row_bytes(mode, kK)), memory(3 * act_row_bytes(mode, kK));
    const std::vector<float> x = random.reals(4 * kK);
    for (int row = 0; row < 4; ++row)
      table.prepare_rows({x.data() + row * kK,
                          DType::f32,
                          kK,
                          kK,
                          act_tile(mode, 1, kK, from.data() + row * act_row_bytes(mode, kK)),
                          {0, 1},
                          {0, kK / kBlock}});
    const ActTile gathered = act_tile(mode, 3, kK, memory.data());
    table.gather_rows({from.data(), ids, gathered});
    report("gather_rows", name, hash_of(gathered));
  }
  for (int i = 0; i < kNumFormats; ++i) run_format(table, static_cast<Format>(i), report);
}

}  // namespace kt::selftest
