// SPDX-License-Identifier: Apache-2.0
// Which worker lives where, and keeping it there. What the machine looks like: kt/topology.h.
#pragma once

#include <thread>
#include <vector>

#include "kt/topology.h"

namespace kt {

struct Home {
  int node;               // counted among the nodes that have workers
  std::vector<int> cpus;  // the CPUs it may use, ascending; empty: the system decides
};

// Pinned to `cores` if there are any. Else, with one worker for each core, each keeps to its own:
// there is none to step aside to, and two woken on one core share it for milliseconds while another
// idles. With fewer, on several nodes, each keeps to its node: its memory stays near, and the
// system may still step around other processes. On one node the system knows best.
std::vector<Home> place_workers(int num_threads, const std::vector<int>& cores,
                                const Topology& topology);

// Throws if the system refuses. cpus: ascending, not empty.
void restrict_to(std::thread& thread, const std::vector<int>& cpus);

}  // namespace kt
