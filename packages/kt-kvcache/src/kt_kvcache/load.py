# SPDX-License-Identifier: Apache-2.0
"""Brings the pages that a lease found on disk into memory, in the background. It waits for nothing.

Batches are read in any order into reserved slots; pages are published in the order of the chain up
to the first one that failed. What is read but not wanted any more gives its slot back when the
read has ended. A load whose pages another one is bringing waits for that one, then reads what is
missing. Before the reach of window groups, only the heads of pages are read.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import TIMEOUT_MAX, RLock, Timer
from time import monotonic

from kt_kvcache.completion import Completion
from kt_kvcache.disk.holding import DiskHolding
from kt_kvcache.disk.tier import DiskTier
from kt_kvcache.errors import StaleHandle
from kt_kvcache.page import CachedPage, PageState
from kt_kvcache.page_mover import Statuses
from kt_kvcache.ram_tier import RamTier, Transfer
from kt_kvcache.window import Window

# Bytes asked for together. The pages of a batch count once all of it is there: at the deadline at
# most the batches in flight are lost.
_BATCH_BYTES = 8 << 20
_BATCHES_IN_FLIGHT = 8


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What became of a load.

    Attributes:
        ok_tokens: tokens in full pages that the lease holds in addition now; a tail, which
            ``lease.tail`` has then, is not counted.
        num_bytes: bytes of these pages, as far as they are needed.
        reason: why they are not all: "memory" (no more slots), "failed" (a page was not readable
            or not what it should be), "deadline", "cancelled", "dropped", "window" (somebody else
            was about to make the last ones whole); None if they are.
    """

    ok_tokens: int
    num_bytes: int
    reason: str | None


class Load(Completion[LoadResult]):
    """A running load. Awaitable; ``cancel`` ends it with what is there by then."""

    def __init__(
        self,
        ram: RamTier,
        disk: DiskTier,
        root: CachedPage,
        page_tokens: int,
        found: DiskHolding,
        window: Window | None,
        grow: Callable[[Transfer, int], None],
        deadline: float | None,
    ) -> None:
        """Takes over `found` and starts; callers use ``Lease.load``.

        Args:
            ram, disk: where to, where from.
            root: of their namespace, in memory.
            page_tokens: tokens per page.
            found: the pages, pinned on disk.
            window: how they are divided, if they are.
            grow: has the lease hold what was published; says how many tokens of the last page
                hold if that is a tail.
            deadline: seconds until the result must be there, or None.
        """
        super().__init__()
        self.set_running_or_notify_cancel()  # a cancelled load has a result
        self._ram, self._disk, self._root = ram, disk, root
        self._page_tokens = page_tokens
        self._num_full_pages, self._tail_tokens = found.num_full_pages, found.tail_tokens
        self._found: DiskHolding | None = found  # until it is given back
        self._window = window
        self._first_whole = 0  # pages before it are read as heads
        self._grow = grow
        self._lock = RLock()  # a read may be done before it is asked for, and calls back at once
        self._holding = ram.transfer()
        self._page_ids: list[int] = []  # slots of these pages, as far as there are any
        self._pages = tuple(found.pages)
        self._followers: list[Load] = []  # those that wait for pages of this one
        self._step = max(1, _BATCH_BYTES // disk.slot_bytes)
        self._next_batch = 0  # pages asked for so far
        self._inflight = 0
        self._advancing = False
        self._read: dict[int, Statuses] = {}  # by first page, waiting for those before
        self._num_ok = 0
        self._since = monotonic()
        self._num_read_bytes = 0
        self._stopped: str | None = None
        self._ended = False
        self._timer: Timer | None = None
        if deadline is not None and deadline <= TIMEOUT_MAX:
            self._timer = Timer(deadline, self._expire)
            self._timer.daemon = True
            self._timer.start()
        self._begin()

    def cancel(self) -> bool:
        """Ends the load with the pages that are there; False if it had ended."""
        return self._end("cancelled")

    def _begin(self) -> None:
        """Reads what is not in memory, unless another load is bringing it."""
        with self._lock:
            if self._ended:  # while it waited
                return
            while not self._ram.has(self._pages[-1].hash):
                leader = self._disk.claims.claim(self._pages, self)
                if leader is None:
                    break
                if leader._lead(self):  # which holds no claim while it follows: no circles
                    return
            # What others brought meanwhile.
            num_pages = len(self._pages)
            self._num_ok = self._ram.pin_some(
                self._holding, _Links(self._pages), num_pages, self._num_heads(num_pages)
            )
            self._disk.shared(self._num_ok)
            try:
                slots = self._ram.reserve_some(
                    self._holding, len(self._pages) - self._num_ok, self._root
                )
            except StaleHandle:  # the store was closed
                slots, self._stopped = [], "dropped"
            self._page_ids = [*[-1] * self._num_ok, *slots]
            self._next_batch = self._num_ok
            self._first_whole = self._num_heads(len(self._page_ids))
            self._since = monotonic()
        self._advance()

    def _num_heads(self, num_pages: int) -> int:
        return 0 if self._window is None else max(0, num_pages - self._window.num_pages)

    def _bytes_of(self, first: int, num_pages: int) -> int:
        """Bytes read for pages of one batch."""
        if self._window is not None and first < self._first_whole:
            return num_pages * self._window.head_bytes
        return num_pages * self._disk.slot_bytes

    def _lead(self, follower: "Load") -> bool:
        """Has `follower` begin again when its last page is there; False if this has ended."""
        with self._lock:
            if not self._ended:
                self._followers.append(follower)
            return not self._ended

    def _tell_followers(self) -> None:
        """Lets those go on that wait for nothing more, all if this has ended."""
        with self._lock:
            ended, waiting = self._ended, self._followers
            ready = [load for load in waiting if ended or self._ram.has(load._pages[-1].hash)]
            self._followers = [load for load in waiting if load not in ready]
        for load in ready:
            load._begin()

    def _advance(self) -> None:
        """Asks for more, or ends; gives everything back once nothing is in flight."""
        with self._lock:
            if self._advancing:  # called back by a read that was done at once
                return
            self._advancing = True
            num_pages = len(self._page_ids)
            while (
                not self._stopped
                and self._inflight < _BATCHES_IN_FLIGHT
                and self._next_batch < num_pages
            ):
                first = self._next_batch
                heads = first < self._first_whole
                end = self._first_whole if heads else num_pages
                self._next_batch = last = min(first + self._step, end)
                self._inflight += 1
                future = self._disk.read(
                    self._pages[first:last],
                    self._page_ids[first:last],
                    self._window if heads else None,
                )
                future.add_done_callback(partial(self._arrived, first))
            self._advancing = False
            finished = self._num_ok == num_pages or self._stopped is not None
        if finished:
            missing = "memory" if num_pages < len(self._pages) else None
            self._end(self._stopped or missing)
        self._give_back()

    def _arrived(self, first: int, done: "Future[Statuses]") -> None:
        with self._lock:
            self._inflight -= 1
            statuses = self._read[first] = done.result()
            self._num_read_bytes += self._bytes_of(first, int((statuses == 0).sum()))
            while not self._stopped and self._num_ok in self._read:
                start = self._num_ok
                came = self._read.pop(start).tolist()
                good = next((i for i, status in enumerate(came) if status), len(came))
                published = self._publish(self._pages[start : start + good], start)
                self._num_ok += published
                if published < good:
                    self._stopped = "dropped"
                elif good < len(came):
                    self._stopped = "failed"
        self._advance()
        self._tell_followers()

    def _publish(self, pages: Sequence[CachedPage], start: int) -> int:
        """Publishes pages that verified; returns how many of them are in the index."""
        # What was dropped meanwhile must not come back.
        if not self._root.attached or not all(page.attached for page in pages):
            return 0
        ids = self._page_ids[start : start + len(pages)]
        try:
            whole, links = start >= self._first_whole, _Links(pages)
            born = [page.born for page in pages]
            states = self._ram.publish(self._holding, links, 0, ids, born, whole=whole)
            if whole and self._window is not None:
                heads = self._ram.claim_heads(links, 0, ids, states)
                self._disk.copy_rest(self._window, heads)
                self._ram.completed(heads)
        except StaleHandle:  # the store was closed
            return 0
        linked = [state is not PageState.UNLINKED for state in states]
        return linked.index(False) if False in linked else len(linked)

    def _expire(self) -> None:
        if self._end("deadline"):
            self._disk.missed_deadline()

    def _end(self, reason: str | None) -> bool:
        with self._lock:
            if self._ended:
                return False
            self._ended = True
            self._disk.claims.release(self._pages, self)
            self._stopped = self._stopped or reason or "done"
            num_ok = self._num_ok
            if num_ok and self._window is not None:
                num_usable = self._ram.trim(self._holding, num_ok, self._window.num_pages)
                if num_usable < num_ok:
                    num_ok, reason = num_usable, reason or "window"
            if num_ok:
                has_tail = num_ok > self._num_full_pages
                self._grow(self._holding, self._tail_tokens if has_tail else 0)
        if self._timer is not None:
            self._timer.cancel()
        self._give_back()  # first: whoever is told wants the slots that brought nothing
        self._tell_followers()
        if self._num_read_bytes:
            self._disk.read_rate.add(self._num_read_bytes, monotonic() - self._since)
        num_heads = min(num_ok, self._first_whole)
        num_bytes = self._bytes_of(0, num_heads) + (num_ok - num_heads) * self._disk.slot_bytes
        ok_tokens = min(num_ok, self._num_full_pages) * self._page_tokens
        self.set_result(LoadResult(ok_tokens, num_bytes, reason))
        return True

    def _give_back(self) -> None:
        with self._lock:
            found = self._found
            if not self._ended or self._inflight or found is None:
                return
            self._found = None
        self._ram.release(self._holding)
        self._disk.release(found)


class _Links:
    """Consecutive pages as ``PageIndex.publish`` takes them: named as they are on disk."""

    def __init__(self, pages: Sequence[CachedPage]) -> None:
        self._pages = pages

    def page_hash(self, page: int) -> bytes:
        return self._pages[page].hash

    def parent_hash(self, page: int) -> bytes:
        parent = self._pages[page].parent
        assert parent is not None  # roots are not loaded
        return parent.hash

    def page_body(self, page: int) -> bytes:
        return self._pages[page].body
