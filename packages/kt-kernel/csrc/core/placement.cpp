// SPDX-License-Identifier: Apache-2.0
// Nodes of workers, and CPU affinity by pthread.
#include "placement.h"

#include <pthread.h>
#include <sched.h>

#include <cerrno>
#include <iterator>
#include <set>

#include "kt/check.h"

namespace kt {

std::vector<Home> place_workers(int num_threads, const std::vector<int>& cores,
                                const Topology& topology) {
  std::vector<Home> homes;
  std::set<int> nodes;
  const bool one_each = num_threads > 1 && num_threads == static_cast<int>(topology.cores.size());
  for (int id = 0; id < num_threads; ++id) {
    if (!cores.empty()) {
      homes.push_back({topology.node_of(cores[id]), {cores[id]}});
    } else {
      const Topology::Core& core = topology.home(id, num_threads);
      homes.push_back({core.node, one_each ? core.cpus : std::vector<int>{}});
    }
    nodes.insert(homes.back().node);
  }
  for (Home& home : homes) {
    if (home.cpus.empty() && nodes.size() > 1) home.cpus = topology.cpus_of(home.node);
    home.node = static_cast<int>(std::distance(nodes.begin(), nodes.find(home.node)));
  }
  return homes;
}

void restrict_to(std::thread& thread, const std::vector<int>& cpus) {
  int error = ENOMEM;
  // Sized for the highest CPU: the fixed cpu_set_t stops at 1024.
  if (cpu_set_t* const mask = CPU_ALLOC(cpus.back() + 1)) {
    const size_t bytes = CPU_ALLOC_SIZE(cpus.back() + 1);
    CPU_ZERO_S(bytes, mask);
    for (const int cpu : cpus) CPU_SET_S(cpu, bytes, mask);
    error = pthread_setaffinity_np(thread.native_handle(), bytes, mask);
    CPU_FREE(mask);
  }
  KT_CHECK("thread_pool", error == 0, "cores must be usable CPU ids; binding to ", cpus[0],
           " failed with error ", error);
}

}  // namespace kt
