# SPDX-License-Identifier: Apache-2.0
"""The disk tier as the store sees it: find and pin, read, offer for writing. No call waits for
I/O but ``open`` and ``close``.
"""

import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kt_kvcache.arena import Arena, PageView
from kt_kvcache.chain import Chain
from kt_kvcache.completion import Completion
from kt_kvcache.config import StoreConfig
from kt_kvcache.disk.claims import Claims
from kt_kvcache.disk.counters import DiskCounters, DiskStats
from kt_kvcache.disk.files import Files
from kt_kvcache.disk.format import SlotShape
from kt_kvcache.disk.holding import DiskHolding
from kt_kvcache.disk.pages import DiskPages
from kt_kvcache.disk.rate import Delayed, TokenBucket
from kt_kvcache.disk.read_rate import ReadRate
from kt_kvcache.disk.root import Root
from kt_kvcache.disk.scrub import Scrub
from kt_kvcache.disk.survey import Survey
from kt_kvcache.disk.worker import Worker
from kt_kvcache.disk.write_policy import Offer
from kt_kvcache.events import EventStream
from kt_kvcache.page import CachedPage
from kt_kvcache.page_mover import PageMover, Statuses, payload_bytes
from kt_kvcache.ram_tier import RamTier
from kt_kvcache.recent import Durations
from kt_kvcache.window import Window, copy_rest

if TYPE_CHECKING:
    from kt_kvcache.load import Load

_WRITING_SHARE = 8  # of the pages in memory may be on their way to the drive


class DiskTier:
    """Pages in the files of one root. Thread-safe; in a forked child it finds nothing.

    Attributes:
        claims: pages being loaded.
        read_rate: of loads.
    """

    def __init__(
        self,
        files: Files,
        mover: PageMover,
        ram: RamTier,
        arena: Arena,
        config: StoreConfig,
    ) -> None:
        """Opens a root and reads all its directories: 512 bytes per page of 64 tokens.

        Args:
            files: of the root; closed with the tier.
            mover: moves the bytes; closed with the tier.
            ram, arena: the pages in memory.
            config: of the store.

        Raises:
            ValueError: the root is not a store of this version, or too small for one page.
            OSError: it cannot be read.
        """
        slot_bytes = payload_bytes(sum(arena.strides))
        self._shape = SlotShape(slot_bytes, config.page_tokens)
        # What is being written is pinned in memory: never more than a small part of it.
        writing = max(1, arena.num_pages // _WRITING_SHARE) * slot_bytes
        self._files, self._mover, self._arena = files, mover, arena
        self._disk_bytes = config.disk_bytes
        self._root = Root(files, config.disk_bytes, config.min_free_bytes)
        self._root.num_slots(self._shape)  # refuses a budget that holds nothing
        self._counters = DiskCounters()
        self._pages = DiskPages(
            config.eviction(config.disk_bytes // self._shape.num_bytes), config.max_age_s
        )
        self._leaked: deque[DiskHolding] = deque()
        self.claims: Claims[Load] = Claims()
        self.read_rate = ReadRate()
        self._reading: dict[Future[Statuses], int] = {}  # bytes
        self._read_times = Durations()
        self._delayed_reads = Delayed(TokenBucket(config.read_bytes_per_s))
        self._pid = os.getpid()
        self._closed = False
        survey = Survey(self._root, self._pages, self._shape, self._counters)
        survey.recover()
        self._scrub = Scrub(
            self._pages, mover, self._shape, arena.strides, self._counters, self._reading
        )
        self._worker = Worker(
            self._root,
            self._pages,
            survey,
            mover,
            ram,
            arena,
            self._shape,
            self._counters,
            config,
            inflight_bytes=min(config.inflight_bytes, writing),
            idle=self._scrub.step,
        )

    @property
    def secret(self) -> bytes:
        """What separates this root's tenants."""
        return self._root.store.secret

    @property
    def slot_bytes(self) -> int:
        """Bytes that a page takes in a file."""
        return self._shape.slot_bytes

    @property
    def extent_bytes(self) -> int:
        """Bytes under one checksum."""
        return self._shape.extent_bytes

    def bytes_of(self, num_pages: int, window: Window | None) -> int:
        """Bytes that a load of the last `num_pages` pages of a prefix reads."""
        slot_bytes = self._shape.slot_bytes
        return num_pages * slot_bytes if window is None else window.num_bytes(num_pages, slot_bytes)

    def find(
        self, ns_key: bytes, chain: Chain, first_page: int, max_tokens: int, tail_above: int | None
    ) -> DiskHolding | None:
        """Pins what follows the first pages of a chain; see ``DiskPages.find``. O(pages)."""
        if self._closed or self._forked():
            return None
        while self._leaked:
            self.release(self._leaked.popleft())
        if first_page:
            self._worker.touch(chain.page_hash(first_page - 1))
        if first_page * chain.page_tokens >= max_tokens:
            return None
        found = self._pages.find(ns_key, chain, first_page, max_tokens, tail_above)
        if found is not None:
            self._counters.hit_pages += found.num_full_pages
            self._counters.hit_tokens += found.num_full_pages * chain.page_tokens
            self._counters.tail_tokens += found.tail_tokens
        return found

    def count(self, ns_key: bytes, chain: Chain) -> int:
        """Number of leading pages of the chain that are here; pins nothing."""
        return 0 if self._closed or self._forked() else self._pages.count(ns_key, chain)

    def release(self, holding: DiskHolding) -> None:
        """Gives up what ``find`` pinned; once."""
        self._pages.unpin(holding.pin)

    def leak(self, holding: DiskHolding) -> None:
        """Takes over the holding of a garbage-collected lease; safe in finalizers."""
        self._leaked.append(holding)

    def read(
        self,
        pages: Sequence[CachedPage],
        page_ids: Sequence[int],
        heads_of: Window | None = None,
    ) -> "Future[Statuses]":
        """Reads pinned pages into rows of the arena, verified; see ``PageMover.read``. It begins
        when the rate lets it.

        A page whose bytes are not right is forgotten, and with it all below it.

        Args:
            pages: where from.
            page_ids: where to.
            heads_of: read only their heads.
        """
        at = self._pages.extents(pages)
        view = self._arena.view(tuple(page_ids), writable=True)
        extent_bytes = self._shape.extent_bytes
        sums, page_bytes = at.sums, self._shape.slot_bytes
        if heads_of is not None:  # the first extents
            view = PageView(view.layer_buffers[: heads_of.head_layers], view.page_ids)
            page_bytes = heads_of.head_bytes
            sums = np.ascontiguousarray(sums[:, : page_bytes // extent_bytes])
        num_bytes, started = len(pages) * page_bytes, list[float]()
        read: Future[Statuses] = Future()
        self._reading[read] = num_bytes

        def begin() -> None:
            started.append(time.monotonic())
            moved = self._mover.read(view, at.fds, at.offsets, at.seeds, sums, extent_bytes)
            moved.add_done_callback(lambda done: read.set_result(done.result()))

        def account(done: "Future[Statuses]") -> None:
            self._read_times.add(time.monotonic() - started[0])
            del self._reading[done]
            statuses = done.result()
            bad = [(page, status) for page, status in zip(pages, statuses, strict=True) if status]
            num_good = len(at.segments) - len(bad)  # `at` keeps the files open until here
            self._counters.loaded_pages += num_good
            self._counters.loaded_bytes += num_good * page_bytes
            for page, status in bad:
                self._pages.failed(page, int(status), self._counters)

        read.add_done_callback(account)
        self._delayed_reads.call(num_bytes, begin)
        return read

    def copy_rest(self, window: Window, copies: Sequence[tuple[CachedPage, int]]) -> None:
        """Completes heads in memory; see there."""
        copy_rest(self._arena, window, copies)

    def offer(self, tail: CachedPage, num_pages: int) -> None:
        """Has a page in memory and all above it written, where they are not on disk yet.

        They are not held for it: what memory needs for something else before its turn comes is
        not written, and counted.

        Args:
            tail: the page.
            num_pages: how many of these pages are new since the last offer.
        """
        if not self._closed and not self._forked():
            self._worker.offer(Offer(tail, num_pages))

    def flush(self, *, durable: bool) -> Completion[bool]:
        """See ``KVStore.flush``."""
        if self._forked():  # nothing is written from here
            nothing: Completion[bool] = Completion()
            nothing.set_result(False)
            return nothing
        return self._worker.flush(durable=durable)

    def drop(self, ns_key: bytes, chain: Chain | None) -> Completion[int]:
        """Drops pages, in all processes' segments; see ``Worker.drop``."""
        if self._forked():
            raise ValueError(
                "[kvstore.drop] pages on disk must be dropped by the process that opened the "
                "store; got a fork of it"
            )
        return self._worker.drop(ns_key, chain)

    def shared(self, num_pages: int) -> None:
        """Counts pages that a load found brought by another one."""
        self._counters.shared_pages += num_pages

    def missed_deadline(self) -> None:
        """Counts a load that ended at its deadline."""
        self._counters.missed_deadlines += 1

    def subscribe(self, stream: EventStream) -> None:
        """Tells a stream of the pages that are here, and of what changes; O(pages)."""
        self._pages.subscribe(stream)

    def stats(self) -> DiskStats:
        """Returns a snapshot; O(pages)."""
        pages, worker = self._pages.counts(), self._worker
        segments = self._pages.segments()
        return DiskStats(
            num_pages=pages.known,
            evictable_pages=pages.evictable,
            free_slots=pages.free,
            bad_slots=pages.bad,
            num_segments=len(segments),
            owned_segments=sum(segment.owned for segment in segments),
            allocated_bytes=sum(segment.num_bytes for segment in segments),
            budget_bytes=self._disk_bytes,
            mismatched_pages=pages.mismatched,
            unwritten_pages=worker.policy.num_held(),
            written_last_day_bytes=worker.flights.wear.last_day(),
            reading_bytes=sum(self._reading.copy().values()),
            writing_bytes=worker.flights.inflight_bytes,
            read_p50_s=self._read_times.quantile(0.5),
            read_p99_s=self._read_times.quantile(0.99),
            write_p50_s=worker.flights.write_times.quantile(0.5),
            write_p99_s=worker.flights.write_times.quantile(0.99),
            reask_gap_s=pages.reask_gap_s,
            degraded=worker.health.degraded,
            read_only=self._files.read_only,
            io=self._mover.io,
            counters=replace(
                self._counters,
                quota_evicted_pages=pages.over_share,
                expired_pages=pages.expired,
                reasked_pages=pages.reasked,
                degraded_ms=worker.health.degraded_ms,
            ),
        )

    def check_integrity(self) -> None:
        """Raises IntegrityError on any broken invariant of the pages known; O(pages), no I/O."""
        self._pages.check_integrity()

    def close(self) -> None:
        """Writes and syncs what was offered, gives up all segments; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._forked():  # its threads are not here
            return
        self._worker.close()
        self._delayed_reads.close()
        self._mover.close()
        for segment in self._pages.segments():
            segment.close()
        self._files.close_all()

    def _forked(self) -> bool:
        return os.getpid() != self._pid
