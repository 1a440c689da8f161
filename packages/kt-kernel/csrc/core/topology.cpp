// SPDX-License-Identifier: Apache-2.0
// Reads sysfs (siblings, nodes), procfs (control groups and where they are mounted) and the groups'
// quotas.
#include "kt/topology.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

namespace kt {
namespace {

// Sized for any machine: the fixed cpu_set_t stops at 1024 CPUs.
constexpr int kMaxCpus = 16384;

// "0-3,8,10-11" as Linux writes lists of CPUs and nodes; what does not read as one ends it.
std::vector<int> read_list(const std::string& path) {
  std::vector<int> ids;
  std::ifstream file(path);
  for (int first, last; file >> first;) {
    last = first;
    if (file.peek() == '-') file.ignore() >> last;
    for (int id = first; id <= std::min(last, kMaxCpus); ++id) ids.push_back(id);
    if (file.peek() == ',') file.ignore();
  }
  return ids;
}

std::map<int, int> nodes_of_cpus(const std::string& root) {
  const std::string directory = root + "/sys/devices/system/node/";
  std::map<int, int> nodes;
  for (const int node : read_list(directory + "online"))
    for (const int cpu : read_list(directory + "node" + std::to_string(node) + "/cpulist"))
      nodes[cpu] = node;
  return nodes;
}

// CPUs' worth of time that one control group's directory allows, or `none`.
double quota_of(const std::string& directory, double none) {
  double quota = 0, period = 0;
  // "max" does not read as a number, and v1 writes -1.
  if (std::ifstream v2(directory + "/cpu.max"); v2) {
    v2 >> quota >> period;
  } else {
    std::ifstream(directory + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(directory + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? std::min(none, quota / period) : none;
}

bool lists_cpu(const std::string& controllers) {
  return ("," + controllers + ",").find(",cpu,") != std::string::npos;
}

// This process's group in the hierarchy that controls CPU time: v1 (v2 == false) or the unified
// one.
std::string group_path(const std::string& root, bool v2) {
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // hierarchy:controllers:path
    std::istringstream fields(line);
    std::string id, controllers, path;
    std::getline(fields, id, ':');
    std::getline(fields, controllers, ':');
    std::getline(fields, path);
    if (v2 ? controllers.empty() : lists_cpu(controllers)) return path;
  }
  return "/";
}

// The tightest quota on the way from this process's group up to the mounted root of its hierarchy.
// In a container, the mount shows only the part of the hierarchy below its own root.
double cgroup_quota(const std::string& root, double none) {
  double tightest = none;
  std::ifstream mounts(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    // id parent device root mount-point options [tags] - type source super-options
    std::istringstream fields(line);
    std::string skip, top, point, type, options;
    fields >> skip >> skip >> skip >> top >> point;
    while (fields >> skip && skip != "-") {
    }
    fields >> type >> skip >> options;
    const bool v2 = type == "cgroup2";
    if (!v2 && !(type == "cgroup" && lists_cpu(options))) continue;
    std::string path = group_path(root, v2);
    if (top == "/") top.clear();
    const bool inside = (path + "/").rfind(top + "/", 0) == 0;
    path = inside ? path.substr(top.size()) : "";
    for (;; path.resize(path.rfind('/'))) {
      tightest = std::min(tightest, quota_of(root + point + path, none));
      if (path.find('/') == std::string::npos) break;
    }
  }
  return tightest;
}

}  // namespace

int Topology::num_cpus() const {
  size_t count = 0;
  for (const Core& core : cores) count += core.cpus.size();
  return static_cast<int>(count);
}

int Topology::usable_cores() const {
  // Rounded down: one thread more would have all of them throttled.
  return std::clamp(static_cast<int>(quota), 1, static_cast<int>(cores.size()));
}

const Topology::Core& Topology::home(int index, int count) const {
  return cores[static_cast<size_t>(index) * cores.size() / count];
}

int Topology::node_of(int cpu) const {
  for (const Core& core : cores)
    if (std::find(core.cpus.begin(), core.cpus.end(), cpu) != core.cpus.end()) return core.node;
  return 0;
}

std::vector<int> Topology::cpus_of(int node) const {
  std::vector<int> cpus;
  for (const Core& core : cores)
    if (core.node == node) cpus.insert(cpus.end(), core.cpus.begin(), core.cpus.end());
  std::sort(cpus.begin(), cpus.end());
  return cpus;
}

Topology read_topology(const std::vector<int>& allowed, const std::string& root) {
  const std::map<int, int> nodes = nodes_of_cpus(root);
  std::map<std::string, Topology::Core> cores;  // hyper-threads of one core list the same siblings
  for (const int cpu : allowed) {
    const std::string name = "cpu" + std::to_string(cpu);
    std::ifstream file(root + "/sys/devices/system/cpu/" + name + "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings) || siblings.empty()) siblings = name;
    const auto node = nodes.find(cpu);
    Topology::Core& core = cores[siblings];
    core.node = node == nodes.end() ? 0 : node->second;
    core.cpus.push_back(cpu);
  }
  Topology topology;
  for (auto& [siblings, core] : cores) topology.cores.push_back(std::move(core));
  std::sort(topology.cores.begin(), topology.cores.end(),
            [](const Topology::Core& a, const Topology::Core& b) {
              return std::tuple(a.node, a.cpus[0]) < std::tuple(b.node, b.cpus[0]);
            });
  topology.quota = cgroup_quota(root, topology.num_cpus());
  return topology;
}

std::vector<int> allowed_cpus() {
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

}  // namespace kt
