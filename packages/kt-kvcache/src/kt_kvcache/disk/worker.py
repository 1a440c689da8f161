# SPDX-License-Identifier: Apache-2.0
"""The one thread that changes a root: what it does when. It has pages written (flights.py), slots
found for them (room.py), drops, syncs and looks what other processes do. Nobody waits for it but
who asks for a flush or a drop.
"""

import errno
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from kt_kvcache.arena import Arena
from kt_kvcache.chain import Chain
from kt_kvcache.completion import Completion
from kt_kvcache.config import StoreConfig
from kt_kvcache.disk.counters import DiskCounters
from kt_kvcache.disk.flights import Call, Flights
from kt_kvcache.disk.format import SlotShape
from kt_kvcache.disk.health import Health
from kt_kvcache.disk.pages import DiskPages
from kt_kvcache.disk.room import Room
from kt_kvcache.disk.root import Root
from kt_kvcache.disk.survey import Survey
from kt_kvcache.disk.wear import Wear
from kt_kvcache.disk.write_policy import Offer, WritePolicy, by_chain, open_write_policy
from kt_kvcache.page_mover import PageMover
from kt_kvcache.ram_tier import RamTier

# How soon a page of another process is found, and a dead one's slots are used: directories are
# asked for their mtime this often.
_REFRESH_S = 1.0
# After the last commit. A queue is empty most of the time while answers are computed, too, and what
# is done in idle time would take a few ms from them: a step in 25 would be late.
_IDLE_AFTER_S = 30.0
# How much of the order of use, and of the bytes written, a killed process takes with it; 8 bytes
# per page are written.
_ORDER_S = 60.0
# Commits of this time are written together, the pages of each chain at once: CPUs that compute the
# next ones pay for each write, and a write costs as much as several pages. A killed process loses
# what waits here; a power cut may take durability_s of it anyway.
_GATHER_S = 0.2
# Prefixes used in memory whose copies here count as used too, between two looks around.
_MAX_TOUCHED = 1024
# Commits that wait: each a few hundred bytes and, for a drive that hangs, no page.
_MAX_QUEUED = 1 << 16

T = TypeVar("T")


class Worker:
    """Runs until ``close``; all calls but ``close`` return at once, from any thread.

    Attributes:
        policy: which pages are written, and when.
        flights: what is being written.
        health: whether the drive can be written.
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
        config: StoreConfig,
        *,
        inflight_bytes: int,
        idle: Callable[[], None],
    ) -> None:
        """Starts the thread; it calls `idle` about once a second while it has nothing to do."""
        self._idle = idle
        self._root, self._pages, self._survey = root, pages, survey
        self._ram, self._shape, self._counters = ram, shape, counters
        self.policy: WritePolicy = open_write_policy(config, pages, ram)
        self.health = Health(counters)
        self._room = Room(root, pages, shape, counters, self.health)
        self.flights = Flights(
            pages,
            self._room,
            mover,
            ram,
            arena,
            shape,
            counters,
            self.health,
            Wear(root, config.daily_write_bytes),
            inflight_bytes=inflight_bytes,
            bytes_per_s=config.write_bytes_per_s,
            # Write-back has the oldest written, to be evicted next: that must not make them young.
            is_use=config.write_policy != "back",
            between=self._sync_if_due,
            arrived=self._arrived,
        )
        self._durability_s = config.durability_s
        self._changed = threading.Condition()
        self._queue: deque[Offer | Call] = deque()
        self._write_at = 0.0  # when what is queued is written, however little it is
        self._gathered_bytes = 0
        self._idle_at = 0.0
        self._closing = False
        self._next_refresh = time.monotonic() + _REFRESH_S
        self._next_sync = 0.0
        self._next_order = time.monotonic() + _ORDER_S
        self._touched: deque[bytes] = deque(maxlen=_MAX_TOUCHED)
        self._thread = threading.Thread(target=self._run, name="kt-kvcache-disk", daemon=True)
        self._thread.start()

    def offer(self, offer: Offer) -> None:
        """Queues pages to be written, or counts them as dropped."""
        now = time.monotonic()
        with self._changed:
            self._idle_at = now + _IDLE_AFTER_S
            fits = len(self._queue) < _MAX_QUEUED and not self._closing
            if fits and not self.health.degraded and not self._root.files.read_only:
                if not self._queue:
                    self._write_at = now + _GATHER_S
                    self._changed.notify()
                self._queue.append(offer)
                self._gathered_bytes += offer.num_new * self._shape.slot_bytes
                if self._gathered_bytes >= self.flights.batch_bytes:
                    self._hurry()
            else:
                self.flights.lose(offer)

    def touch(self, page_hash: bytes) -> None:
        """Says that a page and those above it were used in memory: its copy is not the oldest."""
        self._touched.append(page_hash)

    def flush(self, *, durable: bool) -> Completion[bool]:
        """See ``KVStore.flush``."""
        result: Completion[bool] = Completion()

        def settle() -> None:
            synced = self._sync() if durable else True
            lost, self.flights.num_lost = self.flights.num_lost, 0
            result.settle(synced and not lost)

        def flush() -> None:  # what is offered later goes on meanwhile
            self._use_touched()
            self._send(self.policy.rest())
            self.flights.then(Call(settle, partial(result.settle, False)))

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
                self.health.failed(error)
                result.set_exception(error)

        ended = OSError(errno.EIO, "the thread that writes has ended")
        self._call(drop, result, ended)
        return result

    def close(self) -> None:
        """Writes and syncs what was asked, then ends; idempotent."""
        with self._changed:
            self._closing = True
            self.flights.hurry.set()
            self._hurry()
        self._thread.join()

    def _hurry(self) -> None:
        """Has what is queued written now."""
        self._write_at = 0.0
        self._changed.notify()

    def _call(self, call: Callable[[], None], result: Completion[T], closed: T | OSError) -> None:
        """Has the thread run a call that settles `result`, which is `closed` if it never will."""

        def cannot() -> None:
            if not isinstance(closed, OSError):
                result.settle(closed)
            elif not result.done():
                result.set_exception(closed)

        with self._changed:
            if not self._closing:
                self._queue.append(Call(call, cannot))
                self.flights.hurry.set()
                self._hurry()
                return
        cannot()

    # The thread

    def _run(self) -> None:
        try:
            while (item := self._next()) is not None:
                if isinstance(item, Call):
                    try:
                        item.run()
                    except BaseException:  # a bug, which ends the thread
                        item.cannot()
                        raise
                    self._tick()
                    continue
                for offer in item:
                    self._send(self.policy.committed(offer))
                    self._tick()
                self._send(self.policy.due())
            self._use_touched()
            self._send(self.policy.rest())
            self.flights.land_all()
            self._keep_order_of_use()
            self._sync()
            self._root.stop_asking()
        finally:  # also where a bug ends the thread: nobody must wait for it for ever
            with self._changed:
                self._closing = True
                left = list(self._queue)
                self._queue.clear()
            for queued in [*left, *self.flights.waiting()]:
                if isinstance(queued, Call):
                    queued.cannot()

    def _next(self) -> "list[Offer] | Call | None":
        """Waits for something to do, landing what has arrived and looking around meanwhile."""
        while True:
            with self._changed:
                now = time.monotonic()
                if self._queue and now >= self._write_at:
                    return self._take()
                if self._closing:
                    return None
                if not any(isinstance(queued, Call) for queued in self._queue):
                    self.flights.hurry.clear()
                if not self.flights.has_arrived():
                    until = self._next_refresh
                    if self._queue:
                        until = min(until, self._write_at)
                    self._changed.wait(max(0.0, until - now))
            self._tick()

    def _take(self) -> "list[Offer] | Call":
        """The call whose turn it is, or all offers before the next call."""
        first = self._queue.popleft()
        if isinstance(first, Call):
            return first
        offers = [first]
        while self._queue and isinstance(item := self._queue[0], Offer):
            offers.append(item)
            self._queue.popleft()
        self._gathered_bytes = 0
        return by_chain(offers)

    def _arrived(self) -> None:
        with self._changed:
            self._changed.notify()

    def _tick(self) -> None:
        while self.flights.has_arrived():
            self.flights.land()
        now = time.monotonic()
        if now >= self._next_refresh:
            self._next_refresh = now + _REFRESH_S
            try:
                self._survey.refresh()
                if not self._root.files.read_only:
                    self._room.share()
            except OSError:
                self._counters.io_errors += 1
            self._pages.expire()
            self._room.free_vacated()
            if now >= self._next_order and not self.health.degraded:
                self._next_order = now + _ORDER_S
                self._keep_order_of_use()
            self._use_touched()
            is_idle = not self._queue and not self.flights and now >= self._idle_at
            if is_idle and not self.health.degraded:
                self._idle()
        self._sync_if_due()

    def _send(self, offers: Iterable[Offer]) -> None:
        for offer in offers:
            self.flights.send(offer)

    def _use_touched(self) -> None:
        """Counts what was used in memory as used on disk, and for what is to be written."""
        while self._touched:
            page_hash = self._touched.popleft()
            self._pages.touch(page_hash)
            page = self._ram.page(page_hash)
            if page is not None:
                self._send(self.policy.used(page))

    def _keep_order_of_use(self) -> None:
        """Writes down when pages were used, for the next start: evicted is what was used least; and
        how much was written."""
        if self._root.files.read_only:
            return
        self._use_touched()
        try:
            self.flights.wear.save()
        except OSError as error:
            self.health.count(error)
        for segment in self._pages.segments():
            if segment.owned:
                try:
                    segment.write_last_used(self._pages.last_used(segment))
                except OSError as error:
                    self.health.failed(error)

    def _drop(self, ns_key: bytes, chain: Chain | None) -> int:
        if self._root.files.read_only:
            raise OSError(errno.EROFS, "the root is read-only")
        self.flights.land_all()
        self.policy.dropped(ns_key if chain is None else chain.page_hash(chain.num_pages - 1))
        self._survey.refresh()
        num_pages, some_of_others = self._room.drop(ns_key, chain)
        if some_of_others:
            self._survey.announce_drop()
        return num_pages

    def _sync_if_due(self) -> None:
        if time.monotonic() >= self._next_sync:
            self._sync()

    def _sync(self) -> bool:
        """Makes what was written durable; False if the drive refuses."""
        self._next_sync = time.monotonic() + self._durability_s
        synced = True
        for segment in self._pages.segments():
            if segment.dirty:
                try:
                    segment.sync()
                except OSError as error:
                    self.health.failed(error)
                    synced = False
        return synced
