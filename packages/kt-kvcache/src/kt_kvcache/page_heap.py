# SPDX-License-Identifier: Apache-2.0
"""Pages in the order of a key, with removal from anywhere; the keys' meaning is the caller's."""

from heapq import heapify, heappop, heappush
from itertools import count

from kt_kvcache.page import CachedPage

# An entry that no longer counts is dropped when it comes to the top, or in a rebuild once such
# entries outnumber the live ones by this factor and floor: O(live) memory, rebuilds amortise.
_REBUILD_FACTOR = 2
_REBUILD_FLOOR = 64


class PageHeap:
    """A heap that forgets lazily; add and pop O(log n), remove O(1) amortised.

    A heap rather than a list in order of use: a parent joins when its last child goes, with a
    time of use anywhere among those already here.
    """

    __slots__ = ("_heap", "_live", "_serial")

    def __init__(self) -> None:
        """Starts with no pages."""
        self._heap: list[tuple[float, int, CachedPage]] = []
        self._live: dict[CachedPage, int] = {}  # page -> serial of its valid heap entry
        self._serial = count()  # decides ties, so that pages are never compared

    def add(self, page: CachedPage, key: float) -> None:
        """Enters a page that is not here."""
        serial = next(self._serial)
        self._live[page] = serial
        heappush(self._heap, (key, serial, page))

    def remove(self, page: CachedPage) -> None:
        """Takes out a page that is here."""
        del self._live[page]
        if len(self._heap) > _REBUILD_FACTOR * len(self._live) + _REBUILD_FLOOR:
            self._heap = [entry for entry in self._heap if self._live.get(entry[2]) == entry[1]]
            heapify(self._heap)

    def first(self) -> CachedPage:
        """Returns the page with the smallest key; of equal keys the one added first."""
        while True:
            _, serial, page = self._heap[0]
            if self._live.get(page) == serial:
                return page
            heappop(self._heap)

    def pop(self) -> CachedPage:
        """Takes out and returns the first page."""
        page = self.first()
        heappop(self._heap)
        del self._live[page]
        return page

    def __contains__(self, page: CachedPage) -> bool:
        return page in self._live

    def __len__(self) -> int:
        return len(self._live)
