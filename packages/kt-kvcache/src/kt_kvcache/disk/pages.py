# SPDX-License-Identifier: Apache-2.0
"""Which page lies in which slot of which segment, behind the tier's lock. It does no I/O.

A place is an int: the number of a segment in this process, and a slot. Pages in segments of
others carry a pin as long as they are known, so that only their owner evicts them.
"""

import errno
import heapq
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from kt_kvcache.chain import Chain
from kt_kvcache.disk.counters import DiskCounters
from kt_kvcache.disk.format import PageName, Record, extent_seed
from kt_kvcache.disk.segment import Segment
from kt_kvcache.errors import IntegrityError
from kt_kvcache.events import EventStream, Tier
from kt_kvcache.eviction import EvictionPolicy
from kt_kvcache.index import index_type
from kt_kvcache.integrity import check_tree
from kt_kvcache.page import CachedPage, PageState
from kt_kvcache.page_mover import CHECKSUM, SHORT
from kt_kvcache.recent import Evicted

_SLOT_BITS = 32
_SLOT_MASK = (1 << _SLOT_BITS) - 1

Changes = Sequence[tuple[int, Record | None]]


class DiskHolding:
    """Pages that a lease found on disk and keeps from being evicted; equal only to itself.

    Attributes:
        pages: in the order of the sequence.
        pin: the last of them, pinned, and with it all above.
        tail_tokens: if the last page only begins as the chain goes on, its tokens that do; else 0.
    """

    __slots__ = ("pages", "pin", "tail_tokens")

    def __init__(self, pages: list[CachedPage], pin: CachedPage, tail_tokens: int = 0) -> None:
        """Records what has just been pinned."""
        self.pages = pages
        self.pin = pin
        self.tail_tokens = tail_tokens

    @property
    def num_full_pages(self) -> int:
        """Pages that are the chain's as a whole."""
        return len(self.pages) - (self.tail_tokens > 0)


@dataclass(frozen=True, slots=True)
class Extents:
    """Where pages lie, as a PageMover wants it; `segments` keeps their files open."""

    fds: NDArray[np.int32]
    offsets: NDArray[np.uint64]
    seeds: NDArray[np.uint64]
    sums: NDArray[np.uint64]
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class PageCounts:
    """What ``DiskPages.counts`` says; what it means stands at ``DiskStats``."""

    known: int
    evictable: int
    free: int
    bad: int
    mismatched: int
    reasked: int
    reask_gap_s: float


class DiskPages:
    """The index of a disk tier; thread-safe. `place`s are freed and taken by one thread only."""

    def __init__(self, policy: EvictionPolicy) -> None:
        """Starts without segments."""
        self._lock = Lock()
        self._index = index_type()(policy, self._vacate, Tier.DISK)
        self._segments: dict[int, Segment] = {}
        self._next_number = 0
        self._free: list[int] = []  # a heap: consecutive slots are written together
        self._vacated: list[int] = []  # left by their page; their records still name it
        self._bad: set[int] = set()  # the drive failed there: not used again
        self._unready: set[CachedPage] = set()  # being written
        self._evicted = Evicted()
        self._num_reasked = 0

    # What leases and loads ask

    def find(
        self, ns_key: bytes, chain: Chain, first_page: int, max_tokens: int, tail_above: int | None
    ) -> DiskHolding | None:
        """Pins those of the chain's pages from `first_page` on that follow without a gap.

        Args:
            ns_key, chain: where to look, and for what.
            first_page: pages found already.
            max_tokens: upper limit of all that is found.
            tail_above: also pin a page that goes on for part of a page, and where no full page
                comes before it, for more tokens than this. None: do not.
        """
        num_pages = min(chain.num_pages, max_tokens // chain.page_tokens)
        with self._lock:
            root = self._index.by_hash.get(ns_key)
            if root is None:
                return None
            last, places = self._index.match(root, chain, num_pages)
            tail = None
            if tail_above is not None and len(places) >= first_page:
                num_left = max_tokens - len(places) * chain.page_tokens
                tail = self._index.match_tail(last, chain, len(places), num_left)
            pages: list[CachedPage] = []
            for _ in range(len(places) - first_page):
                pages.append(last)
                assert last.parent is not None  # roots have no place
                last = last.parent
            pages.reverse()
            unready = next((i for i, page in enumerate(pages) if page in self._unready), None)
            if unready is not None:
                del pages[unready:]
            tail_tokens = 0
            if tail is not None and unready is None and tail[0] not in self._unready:
                page, num_tokens = tail
                if pages or num_tokens > (tail_above or 0):
                    pages.append(page)
                    tail_tokens = num_tokens
            if not pages:
                return None
            self._index.pin(pages[-1])
            return DiskHolding(pages, pages[-1], tail_tokens)

    def count(self, ns_key: bytes, chain: Chain) -> int:
        """Number of leading pages of the chain that are known here, pins nothing."""
        with self._lock:
            root = self._index.by_hash.get(ns_key)
            return 0 if root is None else len(self._index.match(root, chain, chain.num_pages)[1])

    def unpin(self, page: CachedPage) -> None:
        """Takes back a pin of ``find`` or ``plan``."""
        with self._lock:
            self._look_at_clock()
            self._index.unpin(page)

    def touch(self, page_hash: bytes) -> None:
        """Counts a page, if it is here, and those above it as used now."""
        with self._lock:
            page = self._index.by_hash.get(page_hash)
            if page is not None:
                self._index.pin(page)
                self._look_at_clock()
                self._index.unpin(page)

    def last_used(self, segment: Segment) -> NDArray[np.uint64]:
        """Returns when the page in each slot was used last, in ns since 1970; 0 without a page."""
        with self._lock:
            times = [0 if page is None else page.last_used for page in segment.pages]
            return np.array(times, np.uint64)

    def _look_at_clock(self, at: int = 0) -> None:
        """Has what is unpinned next count as used now, or at an earlier time.

        The index counts uses; times in ns do as well, and mean the same after a restart.
        """
        self._index.use_at(at or time.time_ns())

    def extents(self, pages: Sequence[CachedPage]) -> Extents:
        """Says where pinned pages lie; O(pages)."""
        with self._lock:
            return self._extents(pages)

    def owned_from(self, place: int, n: int) -> tuple[list[CachedPage], Extents] | None:
        """Returns up to `n` of our own pages from a place on, in the order of places, unpinned;
        None if there are none.

        As long as one is attached, its slot holds nothing else. O(n + free slots among them).
        """
        found: list[CachedPage] = []
        with self._lock:
            for number, segment in sorted(self._segments.items()):
                if segment.owned and number >= place >> _SLOT_BITS:
                    first = place & _SLOT_MASK if number == place >> _SLOT_BITS else 0
                    for page in segment.pages[first:]:
                        if len(found) < n and page is not None and page not in self._unready:
                            found.append(page)
            return (found, self._extents(found)) if found else None

    def _extents(self, pages: Sequence[CachedPage]) -> Extents:
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

    def subscribe(self, stream: EventStream) -> None:
        """Tells a stream of the pages that are here, and of what changes; O(pages)."""
        with self._lock:
            self._index.subscribe(stream)

    def failed(self, page: CachedPage, status: int, counters: DiskCounters) -> None:
        """Counts a page that could not be read, and drops it with all below it if that was its
        own fault; `status` is the PageMover's."""
        if status == CHECKSUM:
            counters.checksum_misses += 1
        else:
            counters.read_errors += 1
        # Others, such as too many open files, say nothing about the page.
        if status in (CHECKSUM, SHORT, errno.EIO):
            with self._lock:
                if page.attached:
                    if status == errno.EIO:
                        self._bad.add(page.page_id)
                    self._remove(page)

    # What the thread that writes asks

    def locate(self, place: int) -> tuple[Segment, int]:
        """Returns the segment and slot of a place."""
        return self._segments[place >> _SLOT_BITS], place & _SLOT_MASK

    def segments(self) -> list[Segment]:
        """All segments known."""
        with self._lock:
            return list(self._segments.values())

    def add_segment(self, segment: Segment) -> None:
        """Makes a segment known. Its slots are not free before ``add_free``."""
        with self._lock:
            self._segments[self._next_number] = segment
            self._next_number += 1

    def remove_segment(self, segment: Segment) -> None:
        """Forgets a segment of somebody else that has gone, and its pages."""
        with self._lock:
            for page in segment.pages:
                if page is not None and page.attached:
                    self._remove(page)
            number = self._number(segment)
            held = any(page.page_id >> _SLOT_BITS == number for page in self._index.detached)
            if not held:  # else it stays until its leases are gone
                del self._segments[number]

    def yield_segment(self) -> Segment | None:
        """Forgets the owned segment that was not used for longest, and all its pages.

        Returns:
            It; None if each has a page that somebody holds or that is being written.
        """
        with self._lock:
            idle = {
                number: max((page.last_used for page in segment.pages if page), default=0)
                for number, segment in self._segments.items()
                if segment.owned and not any(page.pins for page in segment.pages if page)
            }
            if not idle:
                return None
            number = min(idle, key=lambda number: idle[number])
            segment = self._segments[number]
            for page in list(segment.pages):
                if page is not None and page.attached:
                    self._remove(page)
            del self._segments[number]
            self._free = [place for place in self._free if place >> _SLOT_BITS != number]
            heapq.heapify(self._free)
            self._vacated = [place for place in self._vacated if place >> _SLOT_BITS != number]
            return segment

    def add_free(self, segment: Segment, slots: Iterable[int]) -> None:
        """Says that slots of an owned segment hold nothing and may be taken."""
        first = self._number(segment) << _SLOT_BITS
        with self._lock:
            for slot in slots:
                heapq.heappush(self._free, first | slot)

    def own(self, segment: Segment, used: NDArray[np.uint64]) -> list[int]:
        """Takes over the pages of a segment whose owner has died, locked and just read.

        Args:
            segment: it.
            used: its ``last_used``.

        Returns:
            Its slots without a page: the caller frees their records, then calls ``add_free``.
        """
        with self._lock:
            segment.owned = True
            now = time.time_ns()
            for slot in np.argsort(used, kind="stable").tolist():
                page = segment.pages[slot]
                if page is not None:
                    self._look_at_clock(min(int(used[slot]), now))
                    self._index.unpin(page)
            return [slot for slot, page in enumerate(segment.pages) if page is None]

    def missing(self, tail: CachedPage) -> list[CachedPage]:
        """Pages of memory from the first one not known here down to `tail`, in that order.

        Those dropped from memory meanwhile are left out.
        """
        found: list[CachedPage] = []
        page = tail
        with self._lock:
            known = self._index.by_hash
            while page.parent is not None and page.hash not in known:
                if page.attached:
                    found.append(page)
                page = page.parent
        found.reverse()
        return found

    def num_free(self) -> int:
        """Slots that can be taken at once."""
        with self._lock:
            return len(self._free)

    def evict(self, n: int, keep: bytes, ns_key: bytes, num_wanted: int) -> int:
        """Evicts up to `n` pages, but not the one called `keep` or any above it.

        Their slots come back through ``take_vacated``. They are for a namespace, which is about to
        have `num_wanted` more pages.
        """
        with self._lock:
            self._index.policy.ask(self._index.root(ns_key).namespace, num_wanted)
            kept = self._index.by_hash.get(keep)
            if kept is not None:
                self._index.pin(kept)
            num = min(n, self._index.num_evictable)
            now = time.monotonic()
            for _ in range(num):
                self._evicted.add(self._index.evict().hash, now)
            if kept is not None:
                self._index.unpin(kept)
            return num

    def plan(self, names: Sequence[PageName]) -> list[CachedPage]:
        """Gives slots to consecutive pages of a chain, as far as slots are free.

        Nobody finds them before ``settle``. The last one carries a pin.
        """
        planned: list[CachedPage] = []
        with self._lock:
            if names and names[0].position == 0:
                self._index.root(names[0].ns_key)
            for name in names[: len(self._free)]:
                page, state = self._index.publish(name, name.position, self._free[0])
                if page is None:
                    break
                if planned:
                    self._index.unpin(planned[-1])
                if state is PageState.PRESENT:  # found by two at once: the rest is next time's
                    self._index.unpin(page)
                    return []
                heapq.heappop(self._free)
                self._num_reasked += self._evicted.returned(page.hash, time.monotonic())
                segment, slot = self.locate(page.page_id)
                segment.pages[slot] = page
                segment.gens[slot] = segment.next_gen
                segment.next_gen += 1
                self._unready.add(page)
                planned.append(page)
        return planned

    def settle(self, planned: Sequence[CachedPage], num_good: int, *, bad_slot: bool) -> None:
        """Ends what ``plan`` began: the first `num_good` pages can be found, the rest is gone."""
        with self._lock:
            self._unready.difference_update(planned)
            if num_good < len(planned):
                failed = planned[num_good]
                if bad_slot:
                    self._bad.add(failed.page_id)
                if failed.attached:
                    self._remove(failed)
            self._look_at_clock()
            self._index.unpin(planned[-1])

    def take_vacated(self) -> list[int]:
        """Places whose records must be freed before ``give``; the caller's from now on."""
        with self._lock:
            places = [place for place in self._vacated if place not in self._bad]
            self._vacated.clear()
            return places

    def give(self, places: Iterable[int]) -> None:
        """Lets places be taken again: their records are freed."""
        with self._lock:
            for place in places:
                heapq.heappush(self._free, place)

    def spoil(self, places: Iterable[int]) -> None:
        """Says that places must not be used again: their records could not be freed."""
        with self._lock:
            self._bad.update(places)

    def absorb(
        self,
        changes: Sequence[tuple[Segment, Changes]],
        used: Mapping[Segment, NDArray[np.uint64]] = MappingProxyType({}),
    ) -> list[tuple[Segment, int, Record]]:
        """Brings the index up to date with records that were read.

        Args:
            changes: the records, by segment and slot.
            used: ``last_used`` of owned segments: the order in which pages will go.

        Returns:
            Records without a place in the tree, with their segment and slot: pages whose parent
            is not there, and for segments of our own also duplicates.
        """
        with self._lock:
            found: list[tuple[int, bool, int, int, Record]] = []
            for segment, records in changes:
                first = self._number(segment) << _SLOT_BITS
                for slot, record in records:
                    old = segment.pages[slot]
                    if old is not None and old.attached:
                        self._remove(old)
                    if record is not None and record.name is not None:
                        age = -record.created_ns
                        position, other = record.name.position, not segment.owned
                        found.append((position, other, age, first | slot, record))
            # Parents first; among copies of a page one of our own, and the newest.
            found.sort(key=lambda entry: entry[:4])
            added: list[tuple[int, int, CachedPage]] = []
            now = time.time_ns()
            surplus = []
            for position, other, age, place, record in found:
                name = record.name
                assert name is not None  # or it is not in the list
                if position == 0:
                    self._index.root(name.ns_key)
                page, state = self._index.publish(name, position, place)
                if page is not None and state is PageState.PUBLISHED:
                    segment, slot = self.locate(place)
                    segment.pages[slot] = page
                    if not other:
                        when = max(-age, int(used[segment][slot]) if segment in used else 0)
                        added.append((min(when, now), position, page))
                    continue
                if page is not None:
                    self._index.unpin(page)
                if not other or page is None:
                    surplus.append((*self.locate(place), record))
            # What was used after the times were written last counts as used then, or when made.
            added.sort(key=lambda entry: entry[:2])
            for when, _, page in added:
                self._look_at_clock(when)
                self._index.unpin(page)
            return surplus

    def drop(self, ns_key: bytes, chain: Chain | None) -> list[int]:
        """Drops a namespace, or the subtree at the chain's last full page; returns its places."""
        with self._lock:
            top = self._index.by_hash.get(ns_key)
            if top is not None and chain is not None:
                top, places = self._index.match(top, chain, chain.num_pages)
                top = top if len(places) == chain.num_pages else None
            if top is None:
                return []
            return [page.page_id for page in self._remove(top) if page.parent is not None]

    def counts(self) -> PageCounts:
        """Counts what there is; O(pages)."""
        with self._lock:
            num_roots = sum(page.parent is None for page in self._index.by_hash.values())
            return PageCounts(
                known=len(self._index.by_hash) - num_roots,
                evictable=self._index.num_evictable,
                free=len(self._free) + len(self._vacated),
                bad=len(self._bad),
                mismatched=self._index.num_mismatched,
                reasked=self._num_reasked,
                reask_gap_s=self._evicted.gap_s,
            )

    def check_integrity(self) -> None:
        """Raises IntegrityError unless tree, segments and free places fit each other; O(pages)."""
        with self._lock:
            check_tree(self._index)
            places = Counter([*self._free, *self._vacated])
            for page in self._index.by_hash.values():
                if page.parent is not None:
                    places[page.page_id] += 1
                    segment, slot = self.locate(page.page_id)
                    if segment.pages[slot] is not page:
                        raise IntegrityError(
                            "[kvstore.check_integrity] a segment must know the page in each of its "
                            f"slots; got another one in slot {slot} of segment "
                            f"{page.page_id >> _SLOT_BITS}"
                        )
            twice = [place for place, count in places.items() if count > 1]
            if twice:
                raise IntegrityError(
                    "[kvstore.check_integrity] a place must be free or hold one page; got "
                    f"{len(twice)} that do more, the first {twice[0]:#x}"
                )

    def _number(self, segment: Segment) -> int:
        return next(number for number, known in self._segments.items() if known is segment)

    def _remove(self, top: CachedPage) -> list[CachedPage]:
        """Takes `top` and all below out of the index; what leases hold keeps its slot."""
        doomed = self._index.subtree(top)
        self._index.drop(top)
        for page in reversed(doomed):
            if page.parent is None:
                continue
            segment, slot = self.locate(page.page_id)
            if not segment.owned:
                segment.pages[slot] = None
                self._index.unpin(page)
        return doomed

    def _vacate(self, place: int) -> None:
        """Called by the index when nobody can use a page any more."""
        segment = self._segments.get(place >> _SLOT_BITS)
        if segment is not None and segment.owned:
            segment.pages[place & _SLOT_MASK] = None
            self._vacated.append(place)
