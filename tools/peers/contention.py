# SPDX-License-Identifier: Apache-2.0
"""How much of the machine other processes took meanwhile: what a figure is worth. Linux only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

PROC = Path("/proc")


class Contention:
    """Counts from its making on.

    Args:
        pids: processes beside this one that are ours; alive until `share` was asked.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = [os.getpid(), *pids]
        self._before = self._ticks()

    def share(self) -> float:
        """Share of all CPUs' time, from 0 to 1, that went to others, the host's guests included."""
        total, busy, own = (
            now - then for now, then in zip(self._ticks(), self._before, strict=True)
        )
        return max(0.0, (busy - own) / total) if total else 0.0

    def _ticks(self) -> tuple[int, int, int]:
        """All CPUs' time, what of it was not idle, and what was ours."""
        first = (PROC / "stat").read_text().partition("\n")[0]
        times = [int(word) for word in first.split()[1:9]]  # user ... steal; guests are in user
        idle = times[3] + times[4]
        return sum(times), sum(times) - idle, sum(map(own_ticks, self._pids))


def own_ticks(pid: int) -> int:
    """User and system time of a process, all its threads."""
    # The name, in parentheses, may hold blanks; utime is the 14th field, the 12th after it.
    after_name = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return int(after_name[11]) + int(after_name[12])
