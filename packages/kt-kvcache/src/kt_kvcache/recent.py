# SPDX-License-Identifier: Apache-2.0
"""What is remembered of the recent past for statistics: durations, and pages that had to go. It
decides nothing.
"""

from collections import OrderedDict, deque

# Enough for a p99 of ten values above it, and for some minutes of a busy server.
_NUM_DURATIONS = 1024
# Evicted pages whose return is noticed, 150 bytes each: what comes back later than after so many
# others went would need a far larger store.
_NUM_EVICTED = 1 << 14


class Durations:
    """The last thousand durations of one kind, in seconds; any thread may add."""

    def __init__(self) -> None:
        """Starts with none."""
        self._last: deque[float] = deque(maxlen=_NUM_DURATIONS)

    def add(self, seconds: float) -> None:
        """Remembers one."""
        self._last.append(seconds)

    def quantile(self, q: float) -> float:
        """Returns the smallest of them that at least the part `q` does not exceed; 0 without any.

        O(1,024 log 1,024).
        """
        ordered = sorted(self._last.copy())
        return ordered[max(0, -int(-q * len(ordered) // 1) - 1)] if ordered else 0.0


class Evicted:
    """Pages evicted lately, and how soon they were wanted again. The caller holds a lock."""

    def __init__(self) -> None:
        """Starts with none."""
        self._since: OrderedDict[bytes, float] = OrderedDict()
        self._gaps = Durations()

    def add(self, page_hash: bytes, now: float) -> None:
        """A page was evicted, at `now` seconds."""
        self._since[page_hash] = now
        if len(self._since) > _NUM_EVICTED:
            self._since.popitem(last=False)

    def returned(self, page_hash: bytes, now: float) -> bool:
        """A page entered the index; says whether it had been evicted lately. O(1)."""
        since = self._since.pop(page_hash, None)
        if since is not None:
            self._gaps.add(now - since)
        return since is not None

    @property
    def gap_s(self) -> float:
        """Median of the seconds that such pages were away."""
        return self._gaps.quantile(0.5)
