// SPDX-License-Identifier: Apache-2.0
// Reads /sys/devices/system/cpu and /sys/fs/cgroup; whatever cannot be read does not limit.
#include "topology.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

namespace kt {
namespace {

// Hyper-threads of one core list the same siblings.
int physical_cores(const std::vector<int>& cpus) {
  std::set<std::string> cores;
  for (const int cpu : cpus) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                       "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings)) siblings = "cpu" + std::to_string(cpu);
    cores.insert(siblings);
  }
  return static_cast<int>(cores.size());
}

// CPUs' worth of time allowed by one control group directory, or `none`.
double quota_of(const std::string& directory, double none) {
  double quota = -1, period = 0;
  std::string text;
  if (std::ifstream v2(directory + "/cpu.max"); v2 >> text >> period) {
    if (text != "max") quota = std::stod(text);
  } else {
    std::ifstream(directory + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(directory + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? quota / period : none;
}

// The tightest quota on the way from this process's groups up to the root.
double cgroup_quota(double none) {
  double tightest = none;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // hierarchy:controllers:path
    std::istringstream fields(line);
    std::string id, controllers, path;
    std::getline(fields, id, ':');
    std::getline(fields, controllers, ':');
    std::getline(fields, path);
    const bool v2 = controllers.empty();
    if (!v2 && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    const std::string mount = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controllers;
    for (;; path.resize(path.rfind('/'))) {
      tightest = std::min(tightest, quota_of(mount + path, none));
      if (path.find('/') == std::string::npos) break;
    }
  }
  return tightest;
}

}  // namespace

std::vector<int> allowed_cpus() {
  // Sized for any machine: the fixed cpu_set_t stops at 1024 CPUs.
  constexpr int kMaxCpus = 16384;
  cpu_set_t* mask = CPU_ALLOC(kMaxCpus);
  const size_t bytes = CPU_ALLOC_SIZE(kMaxCpus);
  std::vector<int> cpus;
  if (mask != nullptr && sched_getaffinity(0, bytes, mask) == 0) {
    for (int cpu = 0; cpu < kMaxCpus; ++cpu)
      if (CPU_ISSET_S(cpu, bytes, mask)) cpus.push_back(cpu);
  }
  if (mask != nullptr) CPU_FREE(mask);
  if (cpus.empty()) cpus.push_back(0);
  return cpus;
}

int usable_cores() {
  const int cores = physical_cores(allowed_cpus());
  const double quota = cgroup_quota(cores);
  return std::clamp(static_cast<int>(quota), 1,
                    cores);  // rounded down: one more would be throttled
}

}  // namespace kt
