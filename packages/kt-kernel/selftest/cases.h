// SPDX-License-Identifier: Apache-2.0
// What the self-test runs: kernels of one table on inputs that are the same on every machine, and
// their outputs as hashes. No judgement: a hash means something beside that of another machine.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kt/kernels.h"

namespace kt::selftest {

// Called with op, format (or what else tells cases of one op apart) and the hash of the output.
using Report = std::function<void(const std::string&, const std::string&, uint64_t)>;

void run_formats(const Kernels& table, const Report& report);  // prepare_rows, pack, gemm
void run_ops(const Kernels& table, const Report& report);      // everything else

// splitmix64 (Steele, Lea and Flood, 2014): a few lines, and the same everywhere, which the
// distributions of the standard library are not.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  int below(int n) { return static_cast<int>((next() >> 33) % n); }
  float real() { return static_cast<float>(below(1 << 23)) / (1 << 22) - 1; }  // [-1, 1), exact
  std::vector<float> reals(size_t n) {
    std::vector<float> x(n);
    for (float& each : x) each = real();
    return x;
  }

 private:
  uint64_t state_;
};

// FNV-1a, 64 bits.
class Hash {
 public:
  void add(const void* data, size_t bytes) {
    for (const auto* at = static_cast<const uint8_t*>(data); bytes > 0; ++at, --bytes)
      value_ = (value_ ^ *at) * 0x100000001b3;
  }
  // NaNs are equal whatever their bits, and zeros whatever their sign: both differ between CPUs.
  void add(const float* x, size_t n) {
    for (size_t i = 0; i < n; ++i) {
      const float value = x[i] != x[i] ? kNan : x[i] == 0 ? 0.0f : x[i];
      add(static_cast<const void*>(&value), sizeof value);
    }
  }
  void add(const std::vector<float>& x) { add(x.data(), x.size()); }
  uint64_t value() const { return value_; }

 private:
  static constexpr float kNan = __builtin_nanf("");
  uint64_t value_ = 0xcbf29ce484222325;
};

inline uint64_t hash_of(const std::vector<float>& x) {
  Hash hash;
  hash.add(x);
  return hash.value();
}

}  // namespace kt::selftest
