# SPDX-License-Identifier: Apache-2.0
"""Replays traces through the prefix store under each eviction policy and prints what was found,
beside the best that can be done knowing the future. Counts only: no times, no model, no bytes.

The table of docs/benchmarks.md is `tools/simulate_eviction.py`'s.
"""

from __future__ import annotations

import argparse

from kt_kvcache.eviction import BranchPolicy, LruPolicy
from kt_kvcache.simulation.candidates import FrequencyPolicy, ProbationPolicy
from kt_kvcache.simulation.replay import HashedRequest, OptimalPolicy, hashed, replay, working_set
from kt_kvcache.simulation.traces import TRACES

COLUMNS = ("LRU", "frequency", "probation", "branches", "optimal")


def found(trace: list[HashedRequest], num_pages: int) -> list[int]:
    """Pages found under each policy of COLUMNS in a store of this size."""
    frequency, optimal = FrequencyPolicy(trace), OptimalPolicy(trace)
    return [
        replay(trace, num_pages, LruPolicy()),
        replay(trace, num_pages, frequency, frequency.begin),
        replay(trace, num_pages, ProbationPolicy(num_pages)),
        replay(trace, num_pages, BranchPolicy()),
        replay(trace, num_pages, optimal, optimal.begin),
    ]


def main() -> None:
    """Print one Markdown table: a line for each trace and capacity."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1500, help="of each trace")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="added up")
    parser.add_argument("--traces", nargs="+", default=list(TRACES), choices=list(TRACES))
    parser.add_argument("--capacities", type=int, nargs="+", default=[10, 25, 50], help="percent")
    args = parser.parse_args()
    print("| trace | capacity | " + " | ".join(COLUMNS) + " | branches - LRU, per seed |")
    print("|---|---" + "|---:" * (len(COLUMNS) + 1) + "|")
    for name in args.traces:
        traces = [hashed(TRACES[name](seed, args.requests)) for seed in args.seeds]
        num_asked = sum(request.num_prompt for trace in traces for request in trace)
        for percent in args.capacities:
            sums, gains = [0] * len(COLUMNS), []
            for trace in traces:
                largest = max(request.chain.num_pages for request in trace)
                num_pages = max(largest, working_set(trace) * percent // 100)
                counts = found(trace, num_pages)
                sums = [total + n for total, n in zip(sums, counts, strict=True)]
                gains.append(counts[COLUMNS.index("branches")] - counts[0])
            shares = " | ".join(f"{100 * n / num_asked:.1f}" for n in sums)
            signed = ", ".join(f"{gain:+d}" for gain in gains)
            print(f"| {name} | {percent} % | {shares} | {signed} |", flush=True)


if __name__ == "__main__":
    main()
