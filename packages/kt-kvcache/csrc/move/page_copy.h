// SPDX-License-Identifier: Apache-2.0
// A page's rows to and from its payload (their bytes one after the other, padded with zeros), with
// the checksums of its extents. No files, no threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kt::kvcache {

// A page's bytes in one layer.
struct Row {
  std::byte* data;
  size_t num_bytes;
};

// Extent i covers extent_bytes of the payload from i * extent_bytes on, the last one what is left;
// its checksum is XXH3_64 with seed + i.
struct Extents {
  size_t payload_bytes;
  size_t extent_bytes;
  uint64_t seed;

  size_t count() const { return (payload_bytes + extent_bytes - 1) / extent_bytes; }
};

// Each of both functions for one kind of CPU.
struct CopyPath {
  const char* name;
  bool (*supported)();
  // Fills `payload` from `rows` and writes the checksums, reading memory once.
  void (*gather)(std::span<const Row> rows, const Extents&, std::byte* payload, uint64_t* sums);
  // Whether the payload has these checksums.
  bool (*verify)(const Extents&, const std::byte* payload, const uint64_t* sums);
};

const CopyPath& copy_path();  // the best of this CPU

void scatter(std::span<const Row> rows, const std::byte* payload);

namespace avx2 {
void gather(std::span<const Row>, const Extents&, std::byte*, uint64_t*);
bool verify(const Extents&, const std::byte*, const uint64_t*);
}  // namespace avx2
namespace portable {
void gather(std::span<const Row>, const Extents&, std::byte*, uint64_t*);
bool verify(const Extents&, const std::byte*, const uint64_t*);
}  // namespace portable

}  // namespace kt::kvcache
