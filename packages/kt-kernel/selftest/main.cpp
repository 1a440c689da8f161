// SPDX-License-Identifier: Apache-2.0
// kernel-selftest: runs the kernels of every target that this CPU has and prints one line for each,
// `op format target hash`. For machines without Python, and for emulators: one static binary, one
// thread. Lines of one target agree between machines; those of the integer formats' gemm and of
// whatever else is exact agree between targets too.
#include <cinttypes>
#include <cstdio>

#include "cases.h"
#include "kt/dispatch.h"

int main() {
  for (const std::string& target : kt::available_targets()) {
    kt::force_target(target);
    const auto print = [&](const std::string& op, const std::string& format, uint64_t hash) {
      std::printf("%-16s %-18s %-12s %016" PRIx64 "\n", op.c_str(), format.c_str(), target.c_str(),
                  hash);
      std::fflush(stdout);  // an emulator may stop at the next one: the last line says where
    };
    kt::selftest::run_formats(kt::kernels(), print);
    kt::selftest::run_ops(kt::kernels(), print);
  }
  return 0;
}
