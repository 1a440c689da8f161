# SPDX-License-Identifier: Apache-2.0
"""Which pages are on disk and at which of its places, behind the tier's lock. It does no I/O.

Pages in segments of others carry a pin as long as they are known, so that only their owner evicts
them.
"""

import errno
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from threading import Lock
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from kt_kvcache.ages import Ages
from kt_kvcache.chain import Chain
from kt_kvcache.disk.counters import DiskCounters
from kt_kvcache.disk.format import PageName, Record
from kt_kvcache.disk.holding import DiskHolding, Extents, PageCounts
from kt_kvcache.disk.integrity import check_places
from kt_kvcache.disk.places import Places
from kt_kvcache.disk.records import Changes, absorb, forget
from kt_kvcache.disk.segment import Segment
from kt_kvcache.events import EventStream, Tier
from kt_kvcache.eviction import EvictionPolicy
from kt_kvcache.index import index_type
from kt_kvcache.page import CachedPage, PageState
from kt_kvcache.page_mover import CHECKSUM, SHORT
from kt_kvcache.recent import Evicted


class DiskPages:
    """The index of a disk tier; thread-safe. `place`s are freed and taken by one thread only."""

    def __init__(self, policy: EvictionPolicy, max_age_s: float = 0.0) -> None:
        """Starts without segments; `max_age_s` as in ``StoreConfig``."""
        self._lock = Lock()
        self._places = Places()
        self._index = index_type()(policy, self._places.vacate, Tier.DISK)
        self._unready: set[CachedPage] = set()  # being written
        self._evicted = Evicted()
        self._num_reasked = 0
        self._ages = Ages(max_age_s)
        self._num_expired = 0

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
            self._expire()
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
            self._expire()
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
            return self._places.extents(pages)

    def owned_from(self, place: int, n: int) -> tuple[list[CachedPage], Extents] | None:
        """Returns up to `n` of our own pages from a place on, in the order of places, unpinned;
        None if there are none.

        As long as one is attached, its slot holds nothing else. O(n + free slots among them).
        """
        with self._lock:
            pages = self._places.pages_from(place)
            found = list(islice((page for page in pages if page not in self._unready), n))
            return (found, self._places.extents(found)) if found else None

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
                        self._places.bad.add(page.page_id)
                    counters.damaged_pages += len(self._forget(page))

    # What the thread that writes asks

    def locate(self, place: int) -> tuple[Segment, int]:
        """Returns the segment and slot of a place."""
        return self._places.locate(place)

    def segments(self) -> list[Segment]:
        """All segments known."""
        with self._lock:
            return list(self._places.segments.values())

    def add_segment(self, segment: Segment) -> None:
        """Makes a segment known. Its slots are not free before ``add_free``."""
        with self._lock:
            self._places.add(segment)

    def remove_segment(self, segment: Segment) -> None:
        """Forgets a segment of somebody else that has gone, and its pages."""
        with self._lock:
            for page in segment.pages:
                if page is not None and page.attached:
                    self._forget(page)
            places, number = self._places, self._places.number(segment)
            held = any(places.is_in(page.page_id, number) for page in self._index.detached)
            if not held:  # else it stays until its leases are gone
                places.remove(number)

    def yield_segment(self) -> tuple[Segment, int] | None:
        """Forgets the owned segment that was not used for longest, and all its pages.

        Returns:
            It, and how many pages that were, those below them in other segments among them; None
            if each has a page that somebody holds or that is being written.
        """
        with self._lock:
            idle = {
                number: max((page.last_used for page in segment.pages if page), default=0)
                for number, segment in self._places.segments.items()
                if segment.owned and not any(page.pins for page in segment.pages if page)
            }
            if not idle:
                return None
            number = min(idle, key=lambda number: idle[number])
            segment = self._places.segments[number]
            num_pages = 0
            for page in list(segment.pages):
                if page is not None and page.attached:
                    num_pages += len(self._forget(page))
            self._places.remove(number)
            return segment, num_pages

    def add_free(self, segment: Segment, slots: Iterable[int]) -> None:
        """Says that slots of an owned segment hold nothing and may be taken."""
        with self._lock:
            first = self._places.first_place(segment)
            self._places.add_free(first | slot for slot in slots)

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
            return self._places.num_free

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

    def plan(self, names: Sequence[PageName], born: Sequence[int]) -> list[CachedPage]:
        """Gives slots to consecutive pages of a chain, computed then, as far as slots are free.

        Nobody finds them before ``settle``. The last one carries a pin.
        """
        planned: list[CachedPage] = []
        with self._lock:
            if names and names[0].position == 0:
                self._index.root(names[0].ns_key)
            for name, when in zip(names[: self._places.num_free], born, strict=False):
                page, state = self._index.publish(name, name.position, self._places.next_free())
                if page is None:
                    break
                if planned:
                    self._index.unpin(planned[-1])
                if state is PageState.PRESENT:  # found by two at once: the rest is next time's
                    self._index.unpin(page)
                    return []
                self._places.take(page)
                page.born = when
                self._ages.add(page)
                self._num_reasked += self._evicted.returned(page.hash, time.monotonic())
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
                    self._places.bad.add(failed.page_id)
                if failed.attached:
                    self._forget(failed)
            self._look_at_clock()
            self._index.unpin(planned[-1])

    def take_vacated(self) -> list[int]:
        """Places whose records must be freed before ``give``; the caller's from now on."""
        with self._lock:
            return self._places.take_vacated()

    def give(self, places: Iterable[int]) -> None:
        """Lets places be taken again: their records are freed."""
        with self._lock:
            self._places.add_free(places)

    def spoil(self, places: Iterable[int]) -> None:
        """Says that places must not be used again: their records could not be freed."""
        with self._lock:
            self._places.bad.update(places)

    def absorb(
        self,
        changes: Sequence[tuple[Segment, Changes]],
        used: Mapping[Segment, NDArray[np.uint64]] = MappingProxyType({}),
    ) -> list[tuple[Segment, int, Record]]:
        """Brings the index up to date with records that were read; see ``records.absorb``."""
        with self._lock:
            return absorb(self._index, self._places, self._ages, changes, used)

    def expire(self) -> None:
        """Forgets pages that are too old. O(these pages)."""
        with self._lock:
            self._expire()

    def drop(self, ns_key: bytes, chain: Chain | None) -> list[int]:
        """Drops a namespace, or the subtree at the chain's last full page; returns its places."""
        with self._lock:
            top = self._index.by_hash.get(ns_key)
            if top is not None and chain is not None:
                top, places = self._index.match(top, chain, chain.num_pages)
                top = top if len(places) == chain.num_pages else None
            if top is None:
                return []
            return [page.page_id for page in self._forget(top) if page.parent is not None]

    def counts(self) -> PageCounts:
        """Counts what there is; O(pages)."""
        with self._lock:
            num_roots = sum(page.parent is None for page in self._index.by_hash.values())
            return PageCounts(
                known=len(self._index.by_hash) - num_roots,
                evictable=self._index.num_evictable,
                free=self._places.num_free + self._places.num_vacated,
                bad=len(self._places.bad),
                mismatched=self._index.num_mismatched,
                over_share=self._index.policy.over_share(),
                expired=self._num_expired,
                reasked=self._num_reasked,
                reask_gap_s=self._evicted.gap_s,
            )

    def check_integrity(self) -> None:
        """Raises IntegrityError unless tree, segments and free places fit each other; O(pages)."""
        with self._lock:
            check_places(self._index, self._places)

    def _expire(self) -> None:
        self._num_expired += self._ages.expire(lambda page: len(self._forget(page)))

    def _forget(self, top: CachedPage) -> list[CachedPage]:
        return forget(self._index, self._places, top)
