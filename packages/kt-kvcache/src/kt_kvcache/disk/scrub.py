# SPDX-License-Identifier: Apache-2.0
"""Reads our own pages again while nothing else is to be done, and forgets those that have gone bad,
before anybody waits for them. It writes nothing and keeps no page from being evicted.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from kt_kvcache.arena import Arena
from kt_kvcache.disk.counters import DiskCounters
from kt_kvcache.disk.format import SlotShape
from kt_kvcache.disk.holding import Extents
from kt_kvcache.disk.pages import DiskPages
from kt_kvcache.page import CachedPage
from kt_kvcache.page_mover import PageMover, Statuses

# Read at once, and held in memory for it. With one batch a second a terabyte takes two days, and
# no drive notices.
_BATCH_BYTES = 8 << 20
# Between two rounds: bits do not rot faster, and drives wear only by writing.
_REST_S = 24 * 3600.0
# After opening: whoever has just started has something else to read.
_FIRST_REST_S = 60.0


class Scrub:
    """A round over all pages of owned segments, batch by batch; used by one thread."""

    def __init__(
        self,
        pages: DiskPages,
        mover: PageMover,
        shape: SlotShape,
        strides: Sequence[int],
        counters: DiskCounters,
        reading: Mapping["Future[Statuses]", int],
    ) -> None:
        """Reads nothing yet, and nothing while there is any of `reading`: whoever waits for pages
        has the drive to himself."""
        self._pages, self._mover, self._shape = pages, mover, shape
        self._strides, self._counters, self._reading = strides, counters, reading
        self._arena: Arena | None = None  # where to read them: made when it is needed
        self._next_place = 0
        self._begin_at = time.monotonic() + _FIRST_REST_S
        self._running: Future[Statuses] | None = None

    def step(self) -> None:
        """Has the next batch read, unless the last one still is; waits for nothing."""
        if self._running is not None and not self._running.done():
            return
        if self._reading or time.monotonic() < self._begin_at:
            return
        num_pages = max(1, _BATCH_BYTES // self._shape.slot_bytes)
        found = self._pages.owned_from(self._next_place, num_pages)
        if found is None:
            self._next_place, self._begin_at = 0, time.monotonic() + _REST_S
            self._arena = self._running = None
            return
        pages, at = found
        self._next_place = pages[-1].page_id + 1
        if self._arena is None:
            self._arena = Arena.allocate(num_pages, self._strides)
        view = self._arena.view(tuple(range(len(pages))), writable=True)
        extent_bytes = self._shape.extent_bytes
        self._running = self._mover.read(view, at.fds, at.offsets, at.seeds, at.sums, extent_bytes)
        self._running.add_done_callback(lambda done: self._account(pages, at, done))

    def _account(self, pages: Sequence[CachedPage], at: Extents, done: "Future[Statuses]") -> None:
        self._counters.scrubbed_pages += len(at.segments)  # `at` keeps the files open until here
        for page, status in zip(pages, done.result(), strict=True):
            # One that was evicted meanwhile may have been overwritten, and is nobody's.
            if status and page.attached:
                self._pages.failed(page, int(status), self._counters)
