// SPDX-License-Identifier: Apache-2.0
// gather and verify on XXH3 of the namespace it is included in: no include guard, no headers.

namespace {

// Copied and then hashed while it lies in the first-level cache.
constexpr size_t kCopyBlock = 16 << 10;

// The checksums of a payload that comes piece by piece.
class Summing {
 public:
  Summing(const Extents& extents, uint64_t* sums) : extents_(extents), sums_(sums) {
    XXH3_INITSTATE(&state_);
    XXH3_64bits_reset_withSeed(&state_, extents_.seed);
  }

  void add(const std::byte* data, size_t n) {
    while (n > 0) {
      const size_t part = std::min(n, extents_.extent_bytes - in_extent_);
      XXH3_64bits_update(&state_, data, part);
      data += part, n -= part, in_extent_ += part, done_ += part;
      if (in_extent_ == extents_.extent_bytes || done_ == extents_.payload_bytes) {
        *sums_++ = XXH3_64bits_digest(&state_);
        in_extent_ = 0;
        XXH3_64bits_reset_withSeed(&state_, extents_.seed + ++extent_);
      }
    }
  }

 private:
  XXH3_state_t state_;
  const Extents& extents_;
  uint64_t* sums_;
  size_t in_extent_ = 0, done_ = 0;
  uint64_t extent_ = 0;
};

}  // namespace

void gather(std::span<const Row> rows, const Extents& extents, std::byte* payload, uint64_t* sums) {
  Summing summing(extents, sums);
  std::byte *end = payload, *summed = payload;
  for (const Row& row : rows)
    for (size_t from = 0; from < row.num_bytes;) {
      const size_t n =
          std::min(row.num_bytes - from, kCopyBlock - static_cast<size_t>(end - summed));
      std::memcpy(end, row.data + from, n);
      end += n, from += n;
      if (static_cast<size_t>(end - summed) == kCopyBlock) {
        summing.add(summed, kCopyBlock);
        summed = end;
      }
    }
  std::memset(end, 0, static_cast<size_t>(payload + extents.payload_bytes - end));
  summing.add(summed, static_cast<size_t>(payload + extents.payload_bytes - summed));
}

bool verify(const Extents& extents, const std::byte* payload, const uint64_t* sums) {
  for (size_t i = 0, from = 0; i < extents.count(); ++i, from += extents.extent_bytes) {
    const size_t n = std::min(extents.extent_bytes, extents.payload_bytes - from);
    if (XXH3_64bits_withSeed(payload + from, n, extents.seed + i) != sums[i]) return false;
  }
  return true;
}
