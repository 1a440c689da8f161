// SPDX-License-Identifier: Apache-2.0
// Bugs on purpose, one per sanitizer: tools/run_sanitize.py believes a quiet sanitizer only after
// it has cried here.
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <thread>

#include "kt/aligned_buffer.h"
#include "kt/thread_pool.h"

namespace {

int g_counter = 0;

void race() {  // every worker writes what only one may
  kt::ThreadPool pool(2);
  pool.run([](kt::Worker& worker) {
    for (int i = 0; i < 1000; ++i) ++g_counter;
    worker.barrier();
  });
}

void overrun(size_t bytes) {  // of the memory that holds weights and scratch
  const kt::AlignedBuffer buffer(bytes);
  volatile char* const at = reinterpret_cast<char*>(buffer.data());
  at[bytes] = 1;
}

int overflow(int value) {
  volatile int most = std::numeric_limits<int>::max();
  return most + value;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string bug = argc > 1 ? argv[1] : "";
  if (bug == "race") race();
  if (bug == "overrun") overrun(1000);
  if (bug == "overflow") return overflow(argc) == 0;
  return 0;
}
