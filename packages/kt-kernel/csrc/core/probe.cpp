// SPDX-License-Identifier: Apache-2.0
// Divides a probe among the workers of a pool and takes the time. The loops themselves belong to
// the targets (csrc/kernels/probe-inl.h).
#include "kt/probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "kt/check.h"
#include "kt/dispatch.h"
#include "kt/formats.h"
#include "kt/rounding.h"

namespace kt {
namespace {

using std::chrono::steady_clock;

// From the first start to the last end of `work` on the first `threads` workers, who start
// together.
template <class Work>
double elapsed(const char* op, ThreadPool& pool, int threads, const Work& work) {
  KT_CHECK(op, threads >= 1 && threads <= pool.num_threads(),
           "threads must lie between 1 and the pool's ", pool.num_threads(), "; got ", threads);
  std::vector<steady_clock::time_point> starts(threads), ends(threads);
  pool.run([&](Worker& worker) {
    worker.barrier();
    const int id = worker.id();
    if (id >= threads) return;
    starts[id] = steady_clock::now();
    work(id);
    ends[id] = steady_clock::now();
  });
  const auto first = *std::min_element(starts.begin(), starts.end());
  const auto last = *std::max_element(ends.begin(), ends.end());
  return std::chrono::duration<double>(last - first).count();
}

Range part_of(size_t bytes, int id, int count) {
  const int64_t blocks = static_cast<int64_t>(bytes) / kReadBlock;
  return {blocks * id / count * kReadBlock, blocks * (id + 1) / count * kReadBlock};
}

// Words no two of which are equal: a stretch read twice or left out shows in the sum.
uint64_t fill(std::byte* data, Range part) {
  uint64_t sum = 0;
  for (int64_t at = part.begin; at < part.end; at += sizeof(uint64_t)) {
    const uint64_t word = static_cast<uint64_t>(at + 1) * 0x9e3779b97f4a7c15;  // odd: a bijection
    std::memcpy(data + at, &word, sizeof word);
    sum ^= word;
  }
  return sum;
}

const PeakLoop& find_peak(const std::string& kind) {
  const Probes& probes = *kernels().probes;
  std::string known;
  for (int i = 0; i < probes.num_peaks; ++i) {
    if (kind == probes.peaks[i].kind) return probes.peaks[i];
    known += (i ? ", " : "") + std::string(probes.peaks[i].kind);
  }
  fail("probe.peak", "kind must be one of (", known, ") on target ", kernels().target, "; got ",
       kind);
}

}  // namespace

std::vector<std::string> peak_kinds() {
  const Probes& probes = *kernels().probes;
  std::vector<std::string> kinds;
  for (int i = 0; i < probes.num_peaks; ++i) kinds.emplace_back(probes.peaks[i].kind);
  return kinds;
}

int64_t peak_ops(const std::string& kind) { return find_peak(kind).ops; }

double peak_seconds(ThreadPool& pool, const std::string& kind, int threads, int64_t steps) {
  const PeakLoop& peak = find_peak(kind);
  KT_CHECK("probe.peak", steps >= 1, "steps must be at least 1; got ", steps);
  return elapsed("probe.peak", pool, threads, [&](int) { peak.run(steps); });
}

ReadProbe::ReadProbe(ThreadPool& pool, size_t bytes) : pool_(pool) {
  KT_CHECK("probe.read", bytes >= 1 && bytes <= kMaxBytes, "bytes must lie between 1 and ",
           kMaxBytes, "; got ", bytes);
  buffer_ = AlignedBuffer(round_up(bytes, kReadBlock));
  std::atomic<uint64_t> checksum{0};
  pool.run([&](Worker& worker) {
    checksum ^= fill(buffer_.data(), part_of(buffer_.size(), worker.id(), worker.num_workers()));
  });
  checksum_ = checksum;
}

double ReadProbe::seconds(int threads) const {
  const Probes& probes = *kernels().probes;
  std::atomic<uint64_t> checksum{0};
  const double seconds = elapsed("probe.read", pool_, threads, [&](int id) {
    const Range part = part_of(buffer_.size(), id, threads);
    checksum ^= probes.read(buffer_.data() + part.begin, part.end - part.begin);
  });
  if (checksum != checksum_)
    throw std::runtime_error("[probe.read] memory must hold what was written; got other bytes");
  return seconds;
}

}  // namespace kt
