// SPDX-License-Identifier: Apache-2.0
// Memory that holds the bytes of a file: its own pages, or a copy. Reading only, and no file
// format.
#pragma once

#include <cstddef>
#include <memory>

namespace kt {

class ThreadPool;

// Part of an open file. The memory made of it outlives the descriptor.
struct FileRange {
  int fd = -1;
  size_t offset = 0, bytes = 0;
};

// The file's pages themselves, not to be written: read from disk when touched, shared with whoever
// else maps the file, in huge pages where the file system has them. They follow later changes of
// the file; reading what was cut off its end is a SIGBUS. Throws `[op] …` if the file cannot be
// mapped.
std::shared_ptr<std::byte> map_file(const char* op, const FileRange& range);

// A copy of our own in an AlignedBuffer, read by all workers of the pool or, without one, by this
// thread. Throws `[op] …` if the file cannot be read or ends early.
std::shared_ptr<std::byte> copy_file(const char* op, const FileRange& range, ThreadPool* pool);

}  // namespace kt
