# SPDX-License-Identifier: Apache-2.0
"""Which unpinned leaf goes first when a slot is needed; it never touches the index itself."""

from heapq import heapify, heappop, heappush
from itertools import count
from typing import Protocol

from kt_kvcache.page import CachedPage

# A heap entry that no longer counts is dropped when popped, or in a rebuild once such entries
# outnumber the live ones by this factor and floor: the heap stays O(live), rebuilds amortise.
_REBUILD_FACTOR = 2
_REBUILD_FLOOR = 64


class EvictionPolicy(Protocol):
    """Holds exactly the pages that may be evicted now: cached, unpinned, without children."""

    def add(self, page: CachedPage) -> None:
        """The page became evictable."""

    def remove(self, page: CachedPage) -> None:
        """The page was pinned, got a child or was dropped."""

    def pop(self) -> CachedPage:
        """Chooses the next victim and forgets it."""

    def __contains__(self, page: CachedPage) -> bool: ...

    def __len__(self) -> int: ...


class LruPolicy:
    """Least recently released first; add and pop O(log n), remove O(1) amortised.

    A heap rather than a list in order of use: a parent joins when its last child goes, with a
    time of use anywhere among those already here.
    """

    def __init__(self) -> None:
        """Starts with no pages."""
        self._heap: list[tuple[int, int, CachedPage]] = []
        self._live: dict[CachedPage, int] = {}  # page -> serial of its valid heap entry
        self._serial = count()  # decides ties, so that pages are never compared

    def add(self, page: CachedPage) -> None:
        """The page became evictable."""
        serial = next(self._serial)
        self._live[page] = serial
        heappush(self._heap, (page.last_used, serial, page))

    def remove(self, page: CachedPage) -> None:
        """The page was pinned, got a child or was dropped."""
        del self._live[page]
        if len(self._heap) > _REBUILD_FACTOR * len(self._live) + _REBUILD_FLOOR:
            self._heap = [entry for entry in self._heap if self._live.get(entry[2]) == entry[1]]
            heapify(self._heap)

    def pop(self) -> CachedPage:
        """Returns the page released longest ago."""
        while True:
            _, serial, page = heappop(self._heap)
            if self._live.get(page) == serial:
                del self._live[page]
                return page

    def __contains__(self, page: CachedPage) -> bool:
        return page in self._live

    def __len__(self) -> int:
        return len(self._live)
