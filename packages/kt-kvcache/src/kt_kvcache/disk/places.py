# SPDX-License-Identifier: Apache-2.0
"""Segments and their slots: which are free, left, or broken. It knows pages only by their place,
takes no lock and does no I/O.

A place is an int: the number of a segment in this process, and a slot.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kt_kvcache.disk.format import extent_seed
from kt_kvcache.disk.holding import Extents
from kt_kvcache.disk.segment import Segment
from kt_kvcache.page import CachedPage

_SLOT_BITS = 32
_SLOT_MASK = (1 << _SLOT_BITS) - 1


class Places:
    """All slots of a disk tier; the caller holds its lock.

    Attributes:
        segments: by number.
        bad: places where the drive failed: not used again.
    """

    def __init__(self) -> None:
        """Starts without segments."""
        self.segments: dict[int, Segment] = {}
        self.bad: set[int] = set()
        self._next_number = 0
        self._free: list[int] = []  # a heap: consecutive slots are written together
        self._vacated: list[int] = []  # left by their page; their records still name it

    @property
    def num_free(self) -> int:
        """Places that can be taken at once."""
        return len(self._free)

    @property
    def num_vacated(self) -> int:
        """Places that can be taken once their records are freed."""
        return len(self._vacated)

    def unused(self) -> Iterator[int]:
        """All places without a page that are not broken."""
        yield from self._free
        yield from self._vacated

    def locate(self, place: int) -> tuple[Segment, int]:
        """Returns the segment and slot of a place."""
        return self.segments[place >> _SLOT_BITS], place & _SLOT_MASK

    def number(self, segment: Segment) -> int:
        """Returns the number of a segment; O(segments)."""
        return next(number for number, known in self.segments.items() if known is segment)

    def first_place(self, segment: Segment) -> int:
        """Returns the place of a segment's slot 0; those of the next ones follow."""
        return self.number(segment) << _SLOT_BITS

    def is_in(self, place: int, number: int) -> bool:
        """Whether a place is one of the segment with this number."""
        return place >> _SLOT_BITS == number

    def extents(self, pages: Sequence[CachedPage]) -> Extents:
        """Says where pages lie; O(pages)."""
        segments, fds, offsets, seeds, sums = [], [], [], [], []
        for page in pages:
            segment, slot = self.locate(page.page_id)
            segments.append(segment)
            fds.append(segment.slots_fd)
            offsets.append(slot * segment.header.shape.slot_bytes)
            seeds.append(extent_seed(page.hash, int(segment.gens[slot]), slot))
            sums.append(segment.sums[slot].copy())
        return Extents(
            np.array(fds, np.int32),
            np.array(offsets, np.uint64),
            np.array(seeds, np.uint64),
            np.array(sums, np.uint64).reshape(len(pages), -1),
            tuple(segments),
        )

    def pages_from(self, place: int) -> Iterator[CachedPage]:
        """The pages in our own segments from a place on, in the order of places."""
        for number, segment in sorted(self.segments.items()):
            if segment.owned and number >= place >> _SLOT_BITS:
                first = place & _SLOT_MASK if number == place >> _SLOT_BITS else 0
                yield from (page for page in segment.pages[first:] if page is not None)

    def add(self, segment: Segment) -> None:
        """Makes a segment known. Its slots are not free before ``add_free``."""
        self.segments[self._next_number] = segment
        self._next_number += 1

    def remove(self, number: int) -> None:
        """Forgets a segment and its places."""
        del self.segments[number]
        self._free = [place for place in self._free if not self.is_in(place, number)]
        heapq.heapify(self._free)
        self._vacated = [place for place in self._vacated if not self.is_in(place, number)]

    def next_free(self) -> int:
        """The place that ``take`` takes; one is free."""
        return self._free[0]

    def take(self, page: CachedPage) -> None:
        """Gives the next free place to a page, which has it as its id, in a new generation."""
        segment, slot = self.locate(heapq.heappop(self._free))
        segment.pages[slot] = page
        segment.gens[slot] = segment.next_gen
        segment.next_gen += 1

    def add_free(self, places: Iterable[int]) -> None:
        """Lets places be taken."""
        for place in places:
            heapq.heappush(self._free, place)

    def vacate(self, place: int) -> None:
        """Says that nobody can use a place's page any more."""
        segment = self.segments.get(place >> _SLOT_BITS)
        if segment is not None and segment.owned:
            segment.pages[place & _SLOT_MASK] = None
            self._vacated.append(place)

    def take_vacated(self) -> list[int]:
        """Places whose records must be freed before ``add_free``; the caller's from now on."""
        places = [place for place in self._vacated if place not in self.bad]
        self._vacated.clear()
        return places
