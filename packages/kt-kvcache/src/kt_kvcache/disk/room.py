# SPDX-License-Identifier: Apache-2.0
"""The slots of our own segments: growing, evicting, freeing, giving segments to other processes. It
writes no pages. All calls come from the thread that writes.
"""

import time
from collections.abc import Iterable

from kt_kvcache.chain import Chain
from kt_kvcache.disk.counters import DiskCounters
from kt_kvcache.disk.format import PageName, SlotShape
from kt_kvcache.disk.health import Health
from kt_kvcache.disk.pages import DiskPages
from kt_kvcache.disk.root import Root
from kt_kvcache.disk.segment import Segment

# A root that is full is not asked for more before somebody may have given something back.
_FULL_S = 1.0
# A segment given to another process is left to it for so long: it asks for room once a second.
_YIELD_S = 5.0


class Room:
    """Where pages can go.

    Attributes:
        full_until: when growing is tried again, in seconds of time.monotonic.
    """

    def __init__(
        self, root: Root, pages: DiskPages, shape: SlotShape, counters: DiskCounters, health: Health
    ) -> None:
        """Starts with the segments that `pages` has."""
        self._root, self._pages, self._shape = root, pages, shape
        self._counters, self._health = counters, health
        self.full_until = 0.0

    def make(self, n: int, first: PageName) -> None:
        """Has `n` slots free where possible, for `first` and those below it: by growing, then by
        evicting."""
        if self._pages.num_free() < n:
            self.free_vacated()
        while self._pages.num_free() < n and time.monotonic() >= self.full_until:
            try:
                segment = self._root.create_segment(self._shape)
            except OSError as error:
                segment = None
                self._health.count(error)
            if segment is None:
                self.full_until = time.monotonic() + _FULL_S
                self._ask()
                break
            self._root.stop_asking()
            segment.owned = True
            self._pages.add_segment(segment)
            self._pages.add_free(segment, range(segment.header.num_slots))
        short = n - self._pages.num_free()
        if short > 0:
            self._counters.evicted_pages += self._pages.evict(short, first.parent, first.ns_key, n)
            self.free_vacated()

    def free_vacated(self) -> None:
        """Frees the records of slots whose page has gone, so that a record there is a page here."""
        for segment, places in self._by_segment(self._pages.take_vacated()).items():
            try:
                segment.free_records([self._pages.locate(place)[1] for place in places])
            except OSError as error:
                self._pages.spoil(places)
                self._health.failed(error)
            else:
                self._pages.give(places)

    def share(self) -> None:
        """Gives a segment to a process that asks for one and has fewer than we would then have."""
        asked = self._root.asked()
        owned = [segment for segment in self._pages.segments() if segment.owned]
        if asked is None or len(owned) <= asked + 1 or self._root.has_room_for(owned[0]):
            return
        yielded = self._pages.yield_segment()
        if yielded is not None:
            segment, num_pages = yielded
            self._counters.yielded_pages += num_pages
            self._root.give_back(segment)
            self._counters.yielded_segments += 1
            self.full_until = time.monotonic() + _YIELD_S

    def drop(self, ns_key: bytes, chain: Chain | None) -> tuple[int, bool]:
        """Drops a namespace, or the subtree at the chain's last page, durably.

        Returns:
            The number of pages, and whether some were other processes'.

        Raises:
            OSError: they may come back after a crash.
        """
        places = self._pages.drop(ns_key, chain)
        by_segment = self._by_segment(places)
        for segment, mine in by_segment.items():
            segment.free_records([self._pages.locate(place)[1] for place in mine])
        for segment in by_segment:
            segment.sync()
        self.free_vacated()
        self._counters.dropped_pages += len(places)
        return len(places), any(not segment.owned for segment in by_segment)

    def _num_owned(self) -> int:
        return sum(segment.owned for segment in self._pages.segments())

    def _ask(self) -> None:
        """Has the other processes know that we have no room to grow."""
        try:
            self._root.ask(self._num_owned())
        except OSError as error:
            self._health.count(error)

    def _by_segment(self, places: Iterable[int]) -> dict[Segment, list[int]]:
        batches: dict[Segment, list[int]] = {}
        for place in places:
            batches.setdefault(self._pages.locate(place)[0], []).append(place)
        return batches
