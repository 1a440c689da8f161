# SPDX-License-Identifier: Apache-2.0
"""The one thread that changes a root: it writes pages, frees slots, drops, syncs and looks what
other processes do. Nobody waits for it but who asks for a flush or a drop.
"""

import errno
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from kt_kvcache.arena import Arena
from kt_kvcache.chain import Chain
from kt_kvcache.completion import Completion
from kt_kvcache.disk.counters import DiskCounters
from kt_kvcache.disk.format import PageName, Record, SlotShape
from kt_kvcache.disk.pages import DiskPages
from kt_kvcache.disk.root import Root
from kt_kvcache.disk.segment import Segment
from kt_kvcache.disk.survey import Survey
from kt_kvcache.page import CachedPage
from kt_kvcache.page_mover import PageMover, Statuses, Sums
from kt_kvcache.ram_tier import RamTier, Transfer
from kt_kvcache.recent import Durations

# How soon a page of another process is found, and a dead one's slots are used: directories are
# asked for their mtime this often.
_REFRESH_S = 1.0
# After the last commit. A queue is empty most of the time while answers are computed, too, and what
# is done in idle time would take a few ms from them: a step in 25 would be late.
_IDLE_AFTER_S = 30.0
# After a failure the drive is left alone, twice as long each time.
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
# How much of the order of use a killed process takes with it; 8 bytes per page are written.
_ORDER_S = 60.0
# A segment given to another process is left to it for so long: it asks for room once a second.
_YIELD_S = 5.0
# Batches that share the bytes in flight: while one is hashed, the next is on its way.
_BATCHES_IN_FLIGHT = 4
# Commits of this time are written together, the pages of each chain at once: CPUs that compute the
# next ones pay for each write, and a write costs as much as several pages. A killed process loses
# what waits here; a power cut may take durability_s of it anyway.
_GATHER_S = 0.2
# Prefixes used in memory whose copies here count as used too, between two looks around.
_MAX_TOUCHED = 1024
# Commits that wait: each a few hundred bytes and, for a drive that hangs, no page.
_MAX_QUEUED = 1 << 16

T = TypeVar("T")


@dataclass(slots=True)
class Offer:
    """Pages in memory that shall be on disk: `tail` and all above it; `num_new` are new."""

    tail: CachedPage
    num_new: int


@dataclass(slots=True)
class _Call:
    """Something else to be done by the thread, in its turn."""

    run: Callable[[], None]
    cannot: Callable[[], None]


@dataclass(slots=True)
class _Flight:
    """Pages on their way to the drive. Flights land in the order in which they began."""

    planned: list[CachedPage]
    names: list[PageName]
    future: "Future[tuple[Statuses, Sums]]"
    num_bytes: int
    since: float  # seconds of time.monotonic
    held: Transfer | None = None  # released when this has landed
    then: list[_Call] = field(default_factory=list)  # due when this has landed


class Worker:
    """Runs until ``close``; all calls but ``close`` return at once, from any thread.

    Attributes:
        inflight_bytes: bytes being written now.
        write_times: of batches, from being sent to having their records written.
    """

    def __init__(
        self,
        root: Root,
        pages: DiskPages,
        survey: Survey,
        mover: PageMover,
        ram: RamTier,
        arena: Arena,
        shape: SlotShape,
        counters: DiskCounters,
        *,
        inflight_bytes: int,
        durability_s: float,
        idle: Callable[[], None],
    ) -> None:
        """Starts the thread; it calls `idle` about once a second while it has nothing to do."""
        self._idle = idle
        self._root, self._pages, self._survey = root, pages, survey
        self._mover, self._ram, self._arena, self._shape = mover, ram, arena, shape
        self._counters = counters
        self._limit = inflight_bytes
        self._batch_bytes = inflight_bytes // _BATCHES_IN_FLIGHT
        self._durability_s = durability_s
        self._changed = threading.Condition()
        self._queue: deque[Offer | _Call] = deque()
        self._write_at = 0.0  # when what is queued is written, however little it is
        self._gathered_bytes = 0
        self._idle_at = 0.0
        self._closing = False
        self._flights: deque[_Flight] = deque()
        self.inflight_bytes = 0
        self.write_times = Durations()
        self._num_lost = 0
        self._degraded_s = 0.0
        self._retry_s = _FIRST_RETRY_S
        self._retry_at = 0.0
        self._next_refresh = time.monotonic() + _REFRESH_S
        self._next_sync = 0.0
        self._next_order = time.monotonic() + _ORDER_S
        self._full_until = 0.0
        self._touched: deque[bytes] = deque(maxlen=_MAX_TOUCHED)
        self._thread = threading.Thread(target=self._run, name="kt-kvcache-disk", daemon=True)
        self._thread.start()

    @property
    def degraded(self) -> bool:
        """Whether writing has failed and is not tried before a while."""
        return time.monotonic() < self._retry_at

    @property
    def degraded_ms(self) -> int:
        """For how long that was so, in all."""
        return int(1000 * (self._degraded_s - max(0.0, self._retry_at - time.monotonic())))

    def offer(self, offer: Offer) -> None:
        """Queues pages to be written, or counts them as dropped."""
        now = time.monotonic()
        with self._changed:
            self._idle_at = now + _IDLE_AFTER_S
            fits = len(self._queue) < _MAX_QUEUED and not self._closing
            if fits and not self.degraded and not self._root.files.read_only:
                if not self._queue:
                    self._write_at = now + _GATHER_S
                    self._changed.notify()
                self._queue.append(offer)
                self._gathered_bytes += offer.num_new * self._shape.slot_bytes
                if self._gathered_bytes >= self._batch_bytes:
                    self._hurry()
            else:
                self._num_lost += 1
                self._counters.dropped_writes += offer.num_new

    def touch(self, page_hash: bytes) -> None:
        """Says that a page and those above it were used in memory: its copy is not the oldest."""
        self._touched.append(page_hash)

    def flush(self, *, durable: bool) -> Completion[bool]:
        """See ``KVStore.flush``."""
        result: Completion[bool] = Completion()

        def settle() -> None:
            synced = self._sync() if durable else True
            lost, self._num_lost = self._num_lost, 0
            result.settle(synced and not lost)

        def flush() -> None:
            if self._flights:  # what is offered later goes on meanwhile
                self._flights[-1].then.append(_Call(settle, partial(result.settle, False)))
            else:
                settle()

        self._call(flush, result, False)
        return result

    def drop(self, ns_key: bytes, chain: Chain | None) -> Completion[int]:
        """Drops a namespace, or the subtree at the chain's last page; done when that is durable.

        The result is the number of pages, or OSError: then they may come back after a crash.
        """
        result: Completion[int] = Completion()

        def drop() -> None:
            try:
                result.settle(self._drop(ns_key, chain))
            except OSError as error:
                self._failed(error)
                result.set_exception(error)

        ended = OSError(errno.EIO, "the thread that writes has ended")
        self._call(drop, result, ended)
        return result

    def close(self) -> None:
        """Writes and syncs what was asked, then ends; idempotent."""
        with self._changed:
            self._closing = True
            self._hurry()
        self._thread.join()

    def _hurry(self) -> None:
        """Has what is queued written now."""
        self._write_at = 0.0
        self._changed.notify()

    def _call(self, call: Callable[[], None], result: Completion[T], closed: T | OSError) -> None:
        """Has the thread run a call that settles `result`, which is `closed` if it never will."""

        def cannot() -> None:
            if isinstance(closed, OSError):
                result.set_exception(closed)
            else:
                result.settle(closed)

        with self._changed:
            if not self._closing:
                self._queue.append(_Call(call, cannot))
                self._hurry()
                return
        cannot()

    # The thread

    def _run(self) -> None:
        try:
            while (item := self._next()) is not None:
                if isinstance(item, _Call):
                    item.run()
                    self._tick()
                    continue
                for offer in item:
                    self._write(offer)
                    self._tick()
            self._land_all()
            self._keep_order_of_use()
            self._sync()
            self._root.stop_asking()
        finally:  # also where a bug ends the thread: nobody must wait for it for ever
            with self._changed:
                self._closing = True
                left = list(self._queue)
                self._queue.clear()
            for queued in [*left, *(call for flight in self._flights for call in flight.then)]:
                if isinstance(queued, _Call):
                    queued.cannot()

    def _next(self) -> "list[Offer] | _Call | None":
        """Waits for something to do, landing what has arrived and looking around meanwhile."""
        while True:
            with self._changed:
                now = time.monotonic()
                if self._queue and now >= self._write_at:
                    return self._take()
                if self._closing:
                    return None
                if not self._has_arrived():
                    until = self._next_refresh
                    if self._queue:
                        until = min(until, self._write_at)
                    self._changed.wait(max(0.0, until - now))
            self._tick()

    def _take(self) -> "list[Offer] | _Call":
        """The call whose turn it is, or all offers before the next call, the last one first: it has
        the pages of its chain written that those before it offered."""
        first = self._queue.popleft()
        if isinstance(first, _Call):
            return first
        offers = [first]
        while self._queue and isinstance(item := self._queue[0], Offer):
            offers.append(item)
            self._queue.popleft()
        self._gathered_bytes = 0
        return offers[::-1]

    def _has_arrived(self) -> bool:
        return bool(self._flights) and self._flights[0].future.done()

    def _arrived(self, _: object) -> None:
        with self._changed:
            self._changed.notify()

    def _tick(self) -> None:
        while self._has_arrived():
            self._land()
        now = time.monotonic()
        if now >= self._next_refresh:
            self._next_refresh = now + _REFRESH_S
            try:
                self._survey.refresh()
                if not self._root.files.read_only:
                    self._share()
            except OSError:
                self._counters.io_errors += 1
            self._free_vacated()
            if now >= self._next_order and not self.degraded:
                self._next_order = now + _ORDER_S
                self._keep_order_of_use()
            while self._touched:
                self._pages.touch(self._touched.popleft())
            is_idle = not self._queue and not self._flights and now >= self._idle_at
            if is_idle and not self.degraded:
                self._idle()
        if now >= self._next_sync:
            self._sync()

    def _write(self, offer: Offer) -> None:
        """Sends pages that are not on disk on their way; holds them until they have landed."""
        held = self._ram.hold(offer.tail)
        if held is None:
            self._num_lost += 1
            self._counters.dropped_writes += offer.num_new
            return
        missing = self._pages.missing(offer.tail)
        names = self._names(missing)
        self._counters.oversized_pages += len(missing) - len(names)
        slot_bytes = self._shape.slot_bytes
        step = max(1, self._batch_bytes // slot_bytes)
        sent = 0
        while sent < len(names) and not self.degraded:
            batch = names[sent : sent + step]
            self._make_room(len(batch), batch[0])
            planned = self._pages.plan(batch)
            if not planned:
                break
            num_bytes = len(planned) * slot_bytes
            while self._flights and self.inflight_bytes + num_bytes > self._limit:
                self._land()
            ids = tuple(page.page_id for page in missing[sent : sent + len(planned)])
            at = self._pages.extents(planned)
            future = self._mover.write(
                self._arena.view(ids, writable=False),
                at.fds,
                at.offsets,
                at.seeds,
                self._shape.extent_bytes,
            )
            self._flights.append(
                _Flight(planned, batch[: len(planned)], future, num_bytes, time.monotonic())
            )
            self.inflight_bytes += num_bytes
            future.add_done_callback(self._arrived)
            sent += len(planned)
        if sent < len(missing):
            self._num_lost += 1
            self._counters.dropped_writes += len(names) - sent
        if sent:
            self._flights[-1].held = held
        else:
            self._ram.release(held)

    def _names(self, missing: list[CachedPage]) -> list[PageName]:
        """Says what the pages are called, up to the first whose extras do not fit a record."""
        names: list[PageName] = []
        if not missing:
            return names
        depth, root = 0, missing[0]
        while root.parent is not None:
            depth, root = depth + 1, root.parent
        for position, missed in enumerate(missing, depth - 1):
            assert missed.parent is not None  # roots are not missing
            if len(missed.body) > self._shape.max_body_bytes:
                break
            names.append(
                PageName(missed.hash, missed.parent.hash, missed.body, root.hash, position)
            )
        return names

    def _make_room(self, n: int, first: PageName) -> None:
        """Has `n` slots free where possible, for `first` and those below it: by growing, then by
        evicting."""
        if self._pages.num_free() < n:
            self._free_vacated()
        while self._pages.num_free() < n and time.monotonic() >= self._full_until:
            try:
                segment = self._root.create_segment(self._shape)
            except OSError as error:
                segment = None
                self._count(error)
            if segment is None:
                self._full_until = time.monotonic() + _REFRESH_S
                self._ask()
                break
            self._root.stop_asking()
            segment.owned = True
            self._pages.add_segment(segment)
            self._pages.add_free(segment, range(segment.header.num_slots))
        short = n - self._pages.num_free()
        if short > 0:
            self._counters.evicted_pages += self._pages.evict(short, first.parent, first.ns_key, n)
            self._free_vacated()

    def _keep_order_of_use(self) -> None:
        """Writes down when pages were used, for the next start: evicted is what was used least."""
        if self._root.files.read_only:
            return
        while self._touched:
            self._pages.touch(self._touched.popleft())
        for segment in self._pages.segments():
            if segment.owned:
                try:
                    segment.write_last_used(self._pages.last_used(segment))
                except OSError as error:
                    self._failed(error)

    def _num_owned(self) -> int:
        return sum(segment.owned for segment in self._pages.segments())

    def _ask(self) -> None:
        """Has the other processes know that we have no room to grow."""
        try:
            self._root.ask(self._num_owned())
        except OSError as error:
            self._count(error)

    def _share(self) -> None:
        """Gives a segment to a process that asks for one and has fewer than we would then have."""
        asked = self._root.asked()
        owned = [segment for segment in self._pages.segments() if segment.owned]
        if asked is None or len(owned) <= asked + 1 or self._root.has_room_for(owned[0]):
            return
        segment = self._pages.yield_segment()
        if segment is not None:
            self._root.give_back(segment)
            self._counters.yielded_segments += 1
            self._full_until = time.monotonic() + _YIELD_S

    def _land_all(self) -> None:
        while self._flights:
            self._land()

    def _land(self) -> None:
        """Waits for the oldest flight, writes its records and makes its pages findable."""
        flight = self._flights[0]
        statuses, sums = flight.future.result()
        planned = flight.planned
        num_good, status = len(planned), 0
        for i, page in enumerate(planned):
            status = int(statuses[i])
            if status or not page.attached:
                num_good = i
                break
        if status:
            self._failed(OSError(status if status > 0 else errno.EIO, "a page was not written"))
        try:
            self._write_records(planned[:num_good], flight.names, sums)
        except OSError as error:
            num_good, status = 0, error.errno or errno.EIO
            self._failed(error)
        self._pages.settle(planned, num_good, bad_slot=status == errno.EIO)
        if num_good:
            self._retry_s = _FIRST_RETRY_S
        self._num_lost += status != 0
        self._counters.written_pages += num_good
        self._counters.written_bytes += num_good * self._shape.slot_bytes
        self._counters.dropped_writes += len(planned) - num_good
        self.inflight_bytes -= flight.num_bytes
        self.write_times.add(time.monotonic() - flight.since)
        if flight.held is not None:
            self._ram.release(flight.held)
        self._flights.popleft()
        for call in flight.then:
            call.run()

    def _write_records(self, planned: list[CachedPage], names: list[PageName], sums: Sums) -> None:
        now = time.time_ns()
        batches: dict[Segment, tuple[list[int], list[Record]]] = {}
        for i, page in enumerate(planned):
            segment, slot = self._pages.locate(page.page_id)
            segment.sums[slot] = sums[i]
            slots, records = batches.setdefault(segment, ([], []))
            slots.append(slot)
            records.append(Record(int(segment.gens[slot]), names[i], now, tuple(sums[i].tolist())))
        for segment, (slots, records) in batches.items():
            segment.write_records(slots, records)

    def _free_vacated(self) -> None:
        """Frees the records of slots whose page has gone, so that a record there is a page here."""
        for segment, places in self._by_segment(self._pages.take_vacated()).items():
            try:
                segment.free_records([self._pages.locate(place)[1] for place in places])
            except OSError as error:
                self._pages.spoil(places)
                self._failed(error)
            else:
                self._pages.give(places)

    def _drop(self, ns_key: bytes, chain: Chain | None) -> int:
        if self._root.files.read_only:
            raise OSError(errno.EROFS, "the root is read-only")
        self._land_all()
        self._survey.refresh()
        places = self._pages.drop(ns_key, chain)
        by_segment = self._by_segment(places)
        for segment, mine in by_segment.items():
            segment.free_records([self._pages.locate(place)[1] for place in mine])
        for segment in by_segment:
            segment.sync()
        if any(not segment.owned for segment in by_segment):
            self._survey.announce_drop()
        self._free_vacated()
        self._counters.dropped_pages += len(places)
        return len(places)

    def _by_segment(self, places: Iterable[int]) -> dict[Segment, list[int]]:
        batches: dict[Segment, list[int]] = {}
        for place in places:
            batches.setdefault(self._pages.locate(place)[0], []).append(place)
        return batches

    def _sync(self) -> bool:
        """Makes what was written durable; False if the drive refuses."""
        self._next_sync = time.monotonic() + self._durability_s
        synced = True
        for segment in self._pages.segments():
            if segment.dirty:
                try:
                    segment.sync()
                except OSError as error:
                    self._failed(error)
                    synced = False
        return synced

    def _failed(self, error: OSError) -> None:
        """Leaves the drive alone for a while; reading goes on."""
        self._count(error)
        now = time.monotonic()
        self._degraded_s += now + self._retry_s - max(now, self._retry_at)
        self._retry_at = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    def _count(self, error: OSError) -> None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._counters.no_space += 1
        else:
            self._counters.io_errors += 1
