# SPDX-License-Identifier: Apache-2.0
"""Reads directories into the index: all of them at open, then what other processes change.

Opening writes nothing before all is read, and needs no order of what was written before a crash: a
record is right by itself or it is not there, and payloads are verified when they are read.
"""

import time
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from kt_kvcache.disk.counters import DiskCounters
from kt_kvcache.disk.format import Record, SlotShape
from kt_kvcache.disk.pages import DiskPages
from kt_kvcache.disk.records import Changes
from kt_kvcache.disk.root import Root
from kt_kvcache.disk.segment import Segment


class Survey:
    """Keeps the index in step with a root's files; used by one thread at a time."""

    def __init__(
        self, root: Root, pages: DiskPages, shape: SlotShape, counters: DiskCounters
    ) -> None:
        """Reads nothing yet."""
        self._counters = counters
        self._root = root
        self._pages = pages
        self._shape = shape
        self._drops_seen = b""
        # Segments that hold nothing for us: other shapes, other versions.
        self._other: set[str] = set()
        # Pages of others whose parent is not known: its record may be read later than theirs.
        self._orphans: dict[Segment, dict[int, Record]] = {}

    def recover(self) -> None:
        """Reads all segments; owns those that nobody has.

        Raises:
            OSError: the directory itself cannot be read, or its lock not be had.
        """
        opened, complete = self._open_new(set())
        if not self._root.files.read_only:
            with self._root.locked():
                for segment in opened:
                    segment.owned = segment.try_lock()
            owned = [segment for segment in opened if segment.owned]
            others = [segment for segment in opened if not segment.owned]
            opened = [*self._root.trim(owned), *others]
            self._drops_seen = self._root.drops()
        changes, unread = self._read(opened)
        for segment, _ in changes:
            self._pages.add_segment(segment)
        used = {segment: self._last_used(segment) for segment, _ in changes if segment.owned}
        surplus = self._pages.absorb(changes, used)
        self._keep_orphans(surplus)
        spare: dict[Segment, set[int]] = {}
        for segment, slot, _ in surplus:
            spare.setdefault(segment, set()).add(slot)
        for segment, _ in changes:
            if not segment.owned:
                continue
            unused = {i for i, page in enumerate(segment.pages) if page is None}
            orphans = spare.get(segment, set())
            # What has no parent now may have one in a segment that could not be read today.
            if not orphans or (complete and not unread and self._free(segment, orphans)):
                self._pages.add_free(segment, sorted(unused))
            else:
                self._pages.add_free(segment, sorted(unused - orphans))

    def refresh(self) -> None:
        """Takes in what others wrote, dropped and left behind; cheap if they did not.

        Raises:
            OSError: the directory itself cannot be read.
        """
        names = self._root.segment_names()
        known = self._pages.segments()
        for segment in known:
            if not segment.owned and segment.name not in names:
                self._pages.remove_segment(segment)
        opened, _ = self._open_new({segment.name for segment in known})
        for segment in opened:
            self._pages.add_segment(segment)
        drops = self._root.drops()
        others = [s for s in self._pages.segments() if not s.owned and s.name in names]
        stale = [segment for segment in others if segment.has_changed()]
        if drops != self._drops_seen:
            stale += [segment for segment in known if segment.owned]
        changes, unread = self._read(stale)
        self._absorb(changes)
        if not unread:
            self._drops_seen = drops
        if others and not self._root.files.read_only:
            self._adopt(others)

    def announce_drop(self) -> None:
        """Tells the owners of segments that records of theirs were freed."""
        self._drops_seen = self._root.announce_drop()

    def _absorb(self, changes: list[tuple[Segment, Changes]]) -> None:
        if changes:
            self._keep_orphans(self._pages.absorb([*self._take_orphans(changes), *changes]))

    def _keep_orphans(self, surplus: list[tuple[Segment, int, Record]]) -> None:
        for segment, slot, record in surplus:
            if not segment.owned:
                self._orphans.setdefault(segment, {})[slot] = record

    def _take_orphans(
        self, changes: list[tuple[Segment, Changes]]
    ) -> list[tuple[Segment, Changes]]:
        """Returns the orphans whose records are none of `changes`, to be tried once more."""
        orphans, self._orphans = self._orphans, {}
        for segment, records in changes:
            for slot, _ in records:
                orphans.get(segment, {}).pop(slot, None)
        known = self._pages.segments()
        return [
            (segment, list(orphans[segment].items())) for segment in orphans if segment in known
        ]

    def _adopt(self, others: list[Segment]) -> None:
        """Owns the segments of processes that died."""
        with self._root.locked():
            orphaned = [segment for segment in others if segment.try_lock()]
        changes, _ = self._read(orphaned)
        self._absorb(changes)
        for segment, _ in changes:
            unused = self._pages.own(segment, self._last_used(segment))
            if self._free(segment, unused):
                self._pages.add_free(segment, unused)

    def _open_new(self, known: set[str]) -> tuple[list[Segment], bool]:
        """Opens segments of our shape that are not known; says whether all could be opened."""
        opened, complete = [], True
        for name in sorted(self._root.segment_names() - known - self._other):
            try:
                segment = Segment.open(self._root.files, name)
            except FileNotFoundError:  # given back meanwhile
                continue
            except OSError:
                complete = False
                continue
            if segment is not None:
                header = segment.header
                if header.shape == self._shape and header.store_id == self._root.store.store_id:
                    opened.append(segment)
                    continue
                segment.close()
                self._other.add(name)
        return opened, complete

    def _read(self, segments: list[Segment]) -> tuple[list[tuple[Segment, Changes]], bool]:
        """Reads directories; says whether one of them could not be."""
        changes: list[tuple[Segment, Changes]] = []
        unread = False
        for segment in segments:
            try:
                records = list(segment.changes(time.time_ns()))
            except OSError:
                unread = True
                continue
            changes.append((segment, records))
            self._counters.bad_records += sum(record is None for _, record in records)
        return changes, unread

    def _last_used(self, segment: Segment) -> NDArray[np.uint64]:
        with suppress(OSError):
            return segment.last_used()
        return np.zeros(segment.header.num_slots, np.uint64)

    def _free(self, segment: Segment, slots: "list[int] | set[int]") -> bool:
        with suppress(OSError):
            segment.free_records(sorted(slots))
            return True
        return False
