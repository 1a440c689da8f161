// SPDX-License-Identifier: Apache-2.0
// AlignedBuffer on anonymous mmap.
#include "kt/aligned_buffer.h"

#include <sys/mman.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <new>
#include <string>
#include <utility>

namespace kt {
namespace {

#if defined(__SANITIZE_ADDRESS__)
// Pages come without the red zones that malloc's memory has in such a build.
constexpr size_t kRedZone = 4096;
void forbid(std::byte* at) { ASAN_POISON_MEMORY_REGION(at, kRedZone); }
void allow(std::byte* at) { ASAN_UNPOISON_MEMORY_REGION(at, kRedZone); }
#else
constexpr size_t kRedZone = 0;
void forbid(std::byte*) {}
void allow(std::byte*) {}
#endif

class OutOfMemory final : public std::bad_alloc {
 public:
  explicit OutOfMemory(size_t bytes)
      : text_("weights or scratch of " + std::to_string(bytes) + " bytes do not fit in memory") {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

}  // namespace

AlignedBuffer::AlignedBuffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  void* at =
      mmap(nullptr, bytes + kRedZone, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw OutOfMemory(bytes);
  // Advice only: a kernel without transparent huge pages is slower, not wrong.
  constexpr size_t kHugePage = 2u << 20;
  if (bytes >= kHugePage) madvise(at, bytes, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(at);
  forbid(data_ + size_);
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ == nullptr) return;
  allow(data_ + size_);
  munmap(data_, size_ + kRedZone);
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace kt
