// SPDX-License-Identifier: Apache-2.0
// Zero-filled memory for weights and scratch, aligned for any vector load. Not a container: bytes,
// owned once.
#pragma once

#include <cstddef>

namespace kt {

// Page-aligned anonymous memory: pages cost nothing until touched and belong to the NUMA node of
// the thread that touches them first; large ones ask for huge pages, because a decode step walks
// all weights once. Move-only.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes);  // throws std::bad_alloc that names the size
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace kt
