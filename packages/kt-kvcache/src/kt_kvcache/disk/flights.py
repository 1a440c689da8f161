# SPDX-License-Identifier: Apache-2.0
"""Pages on their way from memory to the drive: sent in batches, landed with their records in the
order in which they began. All calls come from the thread that writes; it decides what is written.
"""

import errno
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import takewhile
from operator import attrgetter

from kt_kvcache.arena import Arena
from kt_kvcache.disk.counters import DiskCounters
from kt_kvcache.disk.format import PageName, Record, SlotShape
from kt_kvcache.disk.health import Health
from kt_kvcache.disk.pages import DiskPages
from kt_kvcache.disk.rate import TokenBucket
from kt_kvcache.disk.room import Room
from kt_kvcache.disk.segment import Segment
from kt_kvcache.disk.wear import Wear
from kt_kvcache.disk.write_policy import Offer
from kt_kvcache.page import CachedPage
from kt_kvcache.page_mover import PageMover, Statuses, Sums
from kt_kvcache.ram_tier import RamTier, Transfer
from kt_kvcache.recent import Durations

# A batch that a rate makes wait is made so small that it waits no longer: what has landed and what
# is due are looked after in between.
_WAIT_S = 0.25
# Batches that share the bytes in flight: while one is hashed, the next is on its way.
_BATCHES_IN_FLIGHT = 4


@dataclass(slots=True)
class Call:
    """Something to be done in its turn by the thread that writes, or told that it cannot be."""

    run: Callable[[], None]
    cannot: Callable[[], None]


@dataclass(slots=True)
class _Flight:
    """Pages of one batch."""

    planned: list[CachedPage]
    names: list[PageName]
    future: "Future[tuple[Statuses, Sums]]"
    num_bytes: int
    since: float  # seconds of time.monotonic
    held: Transfer  # released when this has landed
    then: list[Call] = field(default_factory=list)  # due when this has landed


class Flights:
    """What is being written.

    Attributes:
        inflight_bytes: bytes being written now.
        write_times: of batches, from being sent to having their records written.
        num_lost: offers and batches that were not written as a whole, since set to 0.
        wear: how much was written.
        hurry: while it is set, no rate is kept: somebody waits.
    """

    def __init__(
        self,
        pages: DiskPages,
        room: Room,
        mover: PageMover,
        ram: RamTier,
        arena: Arena,
        shape: SlotShape,
        counters: DiskCounters,
        health: Health,
        wear: Wear,
        *,
        inflight_bytes: int,
        bytes_per_s: int,
        is_use: bool,
        between: Callable[[], None],
        arrived: Callable[[], None],
    ) -> None:
        """Starts with none.

        Args:
            pages, room, mover, ram, arena, shape, counters, health, wear: whose pages go where.
            inflight_bytes: most that is written at once.
            bytes_per_s: most that is written on average; 0: no limit.
            is_use: whether pages that are written count as used then.
            between: called between batches that had to wait.
            arrived: called, from any thread, when a flight can land.
        """
        self._pages, self._room, self._mover = pages, room, mover
        self._ram, self._arena, self._shape = ram, arena, shape
        self._counters, self._health = counters, health
        self._limit = inflight_bytes
        self.batch_bytes = inflight_bytes // _BATCHES_IN_FLIGHT
        if bytes_per_s:
            self.batch_bytes = min(self.batch_bytes, int(bytes_per_s * _WAIT_S))
        self._rate = TokenBucket(bytes_per_s)
        self._is_use = is_use
        self._between = between
        self.wear = wear
        self.hurry = threading.Event()
        self._arrived = arrived
        self._flights: deque[_Flight] = deque()
        self.inflight_bytes = 0
        self.write_times = Durations()
        self.num_lost = 0

    def __bool__(self) -> bool:
        return bool(self._flights)

    def has_arrived(self) -> bool:
        """Whether ``land`` would not wait."""
        return bool(self._flights) and self._flights[0].future.done()

    def then(self, call: Call) -> None:
        """Has a call run once all that is in flight now has landed: at once if nothing is."""
        if self._flights:
            self._flights[-1].then.append(call)
        else:
            call.run()

    def waiting(self) -> list[Call]:
        """What ``then`` was told and has not run."""
        return [call for flight in self._flights for call in flight.then]

    def lose(self, offer: Offer) -> None:
        """Counts pages that are not written."""
        self._lose(offer.num_new)

    def _lose(self, num_pages: int) -> None:
        self.num_lost += 1
        self._counters.dropped_writes += num_pages

    def send(self, offer: Offer) -> None:
        """Sends pages that are not on disk on their way; holds each batch until it has landed.

        While it waits it holds nothing: what memory needs meanwhile is not written.
        """
        page, num_gone = offer.tail, 0
        while not page.attached and page.parent is not None:
            page, num_gone = page.parent, num_gone + 1
        if num_gone:
            self._lose(min(num_gone, offer.num_new))
        missing = self._pages.missing(page)
        whole = list(takewhile(attrgetter("whole"), missing))
        names = self._names(whole)
        self._counters.oversized_pages += len(whole) - len(names)
        step = max(1, self.batch_bytes // self._shape.slot_bytes)
        sent = 0
        while sent < len(names) and not self._health.degraded:
            last = min(sent + step, len(names))
            if not self.wear.allows((last - sent) * self._shape.num_bytes):
                self._counters.capped_writes += len(names) - sent
                break
            self._wait_for_rate((last - sent) * self._shape.slot_bytes)
            num_sent = self._send_batch(missing[sent:last], names[sent:last])
            if not num_sent:
                break
            sent += num_sent
        if sent < len(missing):
            self._lose(len(names) - sent + len(missing) - len(whole))

    def _send_batch(self, pages: list[CachedPage], names: list[PageName]) -> int:
        """Sends consecutive pages of a chain, as far as there is room; returns how many."""
        held = self._ram.hold(pages[-1], is_use=self._is_use)
        if held is None:
            return 0
        self._room.make(len(names), names[0])
        planned = self._pages.plan(names, [page.born for page in pages])
        if not planned:
            self._ram.release(held)
            return 0
        num_bytes = len(planned) * self._shape.slot_bytes
        while self._flights and self.inflight_bytes + num_bytes > self._limit:
            self.land()
        ids = tuple(page.page_id for page in pages[: len(planned)])
        at = self._pages.extents(planned)
        future = self._mover.write(
            self._arena.view(ids, writable=False),
            at.fds,
            at.offsets,
            at.seeds,
            self._shape.extent_bytes,
        )
        since = time.monotonic()
        self._flights.append(
            _Flight(planned, names[: len(planned)], future, num_bytes, since, held)
        )
        self.inflight_bytes += num_bytes
        self.wear.add(len(planned) * self._shape.num_bytes)
        future.add_done_callback(lambda _: self._arrived())
        return len(planned)

    def _wait_for_rate(self, num_bytes: int) -> None:
        """Waits until so many bytes may be written."""
        due = time.monotonic() + self._rate.take(num_bytes)
        while (left := due - time.monotonic()) > 0 and not self.hurry.is_set():
            while self.has_arrived():
                self.land()
            self._between()
            self.hurry.wait(min(left, _WAIT_S))

    def land_all(self) -> None:
        """Waits for all that is in flight."""
        while self._flights:
            self.land()

    def land(self) -> None:
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
            self._health.failed(
                OSError(status if status > 0 else errno.EIO, "a page was not written")
            )
        try:
            self._write_records(planned[:num_good], flight.names, sums)
        except OSError as error:
            num_good, status = 0, error.errno or errno.EIO
            self._health.failed(error)
        self._pages.settle(planned, num_good, bad_slot=status == errno.EIO)
        if num_good:
            self._health.worked()
        self.num_lost += status != 0
        self._counters.written_pages += num_good
        self._counters.written_bytes += num_good * self._shape.slot_bytes
        self._counters.dropped_writes += len(planned) - num_good
        self.inflight_bytes -= flight.num_bytes
        self.write_times.add(time.monotonic() - flight.since)
        self._ram.release(flight.held)
        self._flights.popleft()
        calls = deque(flight.then)
        try:
            while calls:
                calls[0].run()
                calls.popleft()
        except BaseException:  # a bug, which ends the thread
            for call in calls:
                call.cannot()
            raise

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

    def _write_records(self, planned: list[CachedPage], names: list[PageName], sums: Sums) -> None:
        batches: dict[Segment, tuple[list[int], list[Record]]] = {}
        for i, page in enumerate(planned):
            segment, slot = self._pages.locate(page.page_id)
            segment.sums[slot] = sums[i]
            slots, records = batches.setdefault(segment, ([], []))
            slots.append(slot)
            records.append(
                Record(int(segment.gens[slot]), names[i], page.born, tuple(sums[i].tolist()))
            )
        for segment, (slots, records) in batches.items():
            segment.write_records(slots, records)
