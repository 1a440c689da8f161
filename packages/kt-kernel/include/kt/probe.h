// SPDX-License-Identifier: Apache-2.0
// The limits of a machine, measured: how fast it reads memory, how fast the multiply instructions
// of a target run. Samples only; repeating them and statistics are src/kt_kernel/probe.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kt/aligned_buffer.h"
#include "kt/thread_pool.h"

namespace kt {

// A loop of one kind of multiply, on registers only.
struct PeakLoop {
  const char* kind;  // "fma", "maddubs_add", …
  int64_t ops;       // of one step; a multiplication and an addition count 1 each
  void (*run)(int64_t steps);
};

// What a target offers for measuring, part of its kernel table. The portable one has no peaks.
struct Probes {
  uint64_t (*read)(const std::byte* data, int64_t bytes);  // xor of the words; whole kReadBlocks
  const PeakLoop* peaks;
  int num_peaks;
};
inline constexpr int64_t kReadBlock = 512;  // 8 vectors of the widest target

std::vector<std::string> peak_kinds();      // of the active target
int64_t peak_ops(const std::string& kind);  // of one step on one worker; throws on unknown kinds

// Seconds from the first worker's start to the last one's end, while workers 0 .. threads - 1 of
// the pool run `steps` steps each and the others sleep. Throws on unknown kinds and thread counts.
double peak_seconds(ThreadPool& pool, const std::string& kind, int threads, int64_t steps);

// A buffer as weights have it (AlignedBuffer, so the same page size), filled by all workers of the
// pool, each its own part: that places its pages.
class ReadProbe {
 public:
  ReadProbe(ThreadPool& pool, size_t bytes);

  // Seconds in which workers 0 .. threads - 1 read the whole buffer once, each a contiguous part.
  // Throws runtime_error if they read anything else than was written.
  double seconds(int threads) const;
  size_t bytes() const { return buffer_.size(); }

 private:
  ThreadPool& pool_;
  AlignedBuffer buffer_;
  uint64_t checksum_ = 0;
};

}  // namespace kt
