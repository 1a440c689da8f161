// SPDX-License-Identifier: Apache-2.0
// What this process may compute on: CPUs by affinity, their physical cores and memory nodes, and
// the control group's share of time. Read from Linux files; no threads here.
#pragma once

#include <string>
#include <vector>

namespace kt {

struct Topology {
  struct Core {
    int node;               // memory (NUMA) node, as Linux numbers it
    std::vector<int> cpus;  // its hyper-threads among the allowed CPUs, ascending
  };
  std::vector<Core> cores;  // by node, then by first CPU; never empty
  double quota = 0;         // CPUs' worth of time of the tightest control group; at most all CPUs

  int num_cpus() const;
  // How many threads have a physical core and, under the quota, its time to themselves; at least 1.
  int usable_cores() const;
  // Where the worker `index` of `count` lives: workers spread evenly over the cores, hence over the
  // nodes, in order; more workers than cores share them.
  const Core& home(int index, int count) const;
  int node_of(int cpu) const;                // 0 for a CPU that is not among the cores
  std::vector<int> cpus_of(int node) const;  // ascending
};

// allowed: CPU ids, ascending. root: what stands before /proc and /sys, for a container that sees
// the host's elsewhere. Whatever cannot be read does not limit: CPUs without known siblings are
// cores of their own, CPUs without a known node are of node 0.
Topology read_topology(const std::vector<int>& allowed, const std::string& root = "");

std::vector<int> allowed_cpus();  // by CPU affinity of the calling thread, ascending

}  // namespace kt
