# SPDX-License-Identifier: Apache-2.0
"""Which pages are too old to be found (``StoreConfig.max_age_s``). It forgets none itself."""

import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count

from kt_kvcache.page import CachedPage

# Pages that left the index for other reasons are taken out once they outnumber those in it.
_REBUILD_FLOOR = 1024


def now_ns() -> int:
    """When a page that is published now was computed, in ns since 1970."""
    return time.time_ns()


class Ages:
    """Pages in the order in which they were computed; the caller holds a lock."""

    def __init__(self, max_age_s: float) -> None:
        """Starts with none; 0 seconds: no page is ever too old."""
        self._max_age_ns = int(max_age_s * 1e9)
        self._pages: list[tuple[int, int, CachedPage]] = []  # a heap
        self._serial = count()  # decides ties, so that pages are never compared
        self._rebuild_at = _REBUILD_FLOOR

    def add(self, page: CachedPage) -> None:
        """Enters a page of the index, whose ``born`` is known. O(log n), amortised."""
        if not self._max_age_ns:
            return
        heappush(self._pages, (page.born, next(self._serial), page))
        if len(self._pages) > self._rebuild_at:
            self._pages = [entry for entry in self._pages if entry[2].attached]
            heapify(self._pages)
            self._rebuild_at = 2 * len(self._pages) + _REBUILD_FLOOR

    def expire(self, forget: Callable[[CachedPage], int]) -> int:
        """Has pages that are too old forgotten, with all below them.

        Args:
            forget: takes a page and all below it out of the index; returns how many.

        Returns:
            Number of pages.
        """
        if not self._pages:
            return 0
        oldest = now_ns() - self._max_age_ns
        num_forgotten = 0
        while self._pages and self._pages[0][0] <= oldest:
            page = heappop(self._pages)[2]
            if page.attached:
                num_forgotten += forget(page)
        return num_forgotten
