# SPDX-License-Identifier: Apache-2.0
"""Moves page bytes between memory and files, in batches, with checksums; it knows neither index
nor file format, and opens nothing.

A page's payload is its rows of all layers, one after the other, zero-padded to ALIGN. It has one
checksum per extent: XXH3_64 of `extent_bytes` of it (the last may have fewer), with the page's seed
plus the extent's number as seed.
"""

import errno
import mmap
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from kt_kvcache.arena import Bytes, PageView
from kt_kvcache.errors import require_int
from kt_kvcache.native import HAS_CORE

ALIGN = 4096  # of buffers, offsets and lengths: what O_DIRECT wants on any drive
SHORT, CHECKSUM = -1, -2  # status of a page; 0 is good, more is an errno
IO_CHOICES = ("auto", "threads", "uring")

Statuses = NDArray[np.int32]
Sums = NDArray[np.uint64]

# Consecutive pages travel in one call up to this size. More gains nothing on a drive that needs
# several calls in flight anyway, and would leave threads idle in small batches.
_RUN_BYTES = 2 << 20
_MASK = (1 << 64) - 1


def payload_bytes(page_bytes: int) -> int:
    """Bytes of a page's payload in a file, padding included."""
    return -(-page_bytes // ALIGN) * ALIGN


def num_extents(payload: int, extent_bytes: int) -> int:
    """Checksums of one payload."""
    return -(-payload // extent_bytes)


class PageMover(Protocol):
    """What moves the bytes: threads here, or the native core. Thread-safe.

    Both calls return at once. The caller keeps files open and pages its own until the future is
    done; callbacks run in a thread of the mover and must be brief. A batch's pages may move in
    any order; reads go before writes that have not begun.

    Attributes:
        io: what moves them, "threads" or "uring".
    """

    io: str

    def read(
        self,
        view: PageView,
        fds: NDArray[np.int32],
        offsets: NDArray[np.uint64],
        seeds: NDArray[np.uint64],
        sums: Sums,
        extent_bytes: int,
    ) -> "Future[Statuses]":
        """Reads, verifies, and only then scatters n pages into the view.

        Args:
            view: n writable pages.
            fds: (n,) where page i lies.
            offsets: (n,) bytes into the file, multiples of ALIGN.
            seeds: (n,) of the pages' checksums.
            sums: (n, num_extents) the checksums expected.
            extent_bytes: a multiple of ALIGN.

        Returns:
            (n,) int32: 0 for a page that is in the view; else its bytes in memory are untouched
            and this is an errno, SHORT (the file ends before) or CHECKSUM.
        """

    def write(
        self,
        view: PageView,
        fds: NDArray[np.int32],
        offsets: NDArray[np.uint64],
        seeds: NDArray[np.uint64],
        extent_bytes: int,
    ) -> "Future[tuple[Statuses, Sums]]":
        """Gathers n pages of the view and writes them; arguments as for ``read``.

        Returns:
            (n,) int32: 0 for a page handed to the operating system in full, an errno or SHORT;
            and (n, num_extents) their checksums.
        """

    def close(self) -> None:
        """Ends the mover once what was asked is done; idempotent."""


def open_page_mover(inflight_bytes: int, io: str = "auto") -> PageMover:
    """Returns the core's mover where there is a core.

    Args:
        inflight_bytes: bytes in flight at most.
        io: "threads", each in a call of its own; "uring"; "auto": io_uring where the system has
            it for us, else threads.

    Raises:
        ValueError: "uring" without the core.
        OSError: "uring", and the system refuses one.
    """
    if not HAS_CORE:
        if io == "uring":
            raise ValueError('[kvstore.open] io="uring" needs the compiled core; got none')
        return ThreadPageMover(inflight_bytes=inflight_bytes)
    from kt_kvcache.native_mover import NativePageMover

    if io != "threads":
        try:
            return NativePageMover(inflight_bytes=inflight_bytes, uring=True)
        except OSError as error:
            if io == "uring":
                raise OSError(
                    error.errno,
                    '[kvstore.open] io="uring" needs a system that lets us use io_uring; got '
                    f"{error.strerror!r}",
                ) from error
    return NativePageMover(inflight_bytes=inflight_bytes)


@dataclass(slots=True)
class _Batch:
    """One call of read or write, until its last run is done."""

    view: PageView
    fds: list[int]
    offsets: list[int]
    seeds: list[int]
    sums: Sums
    extent_bytes: int
    is_read: bool
    future: "Future[Any]"
    statuses: Statuses
    runs_left: int = 0
    page_ids: NDArray[np.intp] = field(init=False)
    payload: int = field(init=False)

    def __post_init__(self) -> None:
        self.page_ids = np.array(self.view.page_ids, np.intp)
        self.payload = payload_bytes(self.view.page_bytes)


_Run = tuple[_Batch, int, int]  # pages [first, last) of a batch, consecutive in one file


class ThreadPageMover:
    """A PageMover of Python threads; the native core's oracle, and what stands in for it."""

    io = "threads"

    def __init__(
        self,
        num_threads: int = 4,
        inflight_bytes: int = 32 << 20,
        *,
        preadv: Callable[[int, list[memoryview], int], int] = os.preadv,
        pwritev: Callable[[int, list[memoryview], int], int] = os.pwritev,
    ) -> None:
        """Starts no thread before the first call.

        Args:
            num_threads: calls in flight.
            inflight_bytes: bytes in flight at most; a page that has more travels alone.
            preadv, pwritev: how files are read and written, as in ``os``.
        """
        self._num_threads = require_int("page_mover", "num_threads", num_threads, 1, 1024)
        self._limit = require_int("page_mover", "inflight_bytes", inflight_bytes, 1)
        self._preadv, self._pwritev = preadv, pwritev
        self._changed = Condition()
        self._reads: deque[_Run] = deque()
        self._writes: deque[_Run] = deque()
        self._inflight = 0
        self._threads: list[Thread] = []
        self._closed = False

    def read(
        self,
        view: PageView,
        fds: NDArray[np.int32],
        offsets: NDArray[np.uint64],
        seeds: NDArray[np.uint64],
        sums: Sums,
        extent_bytes: int,
    ) -> "Future[Statuses]":
        """See ``PageMover.read``."""
        batch = self._batch("read", view, fds, offsets, seeds, sums, extent_bytes)
        return self._submit(batch, self._reads)

    def write(
        self,
        view: PageView,
        fds: NDArray[np.int32],
        offsets: NDArray[np.uint64],
        seeds: NDArray[np.uint64],
        extent_bytes: int,
    ) -> "Future[tuple[Statuses, Sums]]":
        """See ``PageMover.write``."""
        batch = self._batch("write", view, fds, offsets, seeds, None, extent_bytes)
        return self._submit(batch, self._writes)

    def close(self) -> None:
        """Ends the mover once what was asked is done; idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _batch(
        self,
        op: str,
        view: PageView,
        fds: NDArray[np.int32],
        offsets: NDArray[np.uint64],
        seeds: NDArray[np.uint64],
        sums: Sums | None,
        extent_bytes: int,
    ) -> _Batch:
        n = len(view.page_ids)
        num_pages = min(len(buffer) for buffer in view.layer_buffers)
        if n and not 0 <= min(view.page_ids) <= max(view.page_ids) < num_pages:
            raise ValueError(f"[page_mover.{op}] page ids must be in [0, {num_pages})")
        require_int(f"page_mover.{op}", "extent_bytes", extent_bytes, ALIGN)
        if extent_bytes % ALIGN:
            raise ValueError(
                f"[page_mover.{op}] extent_bytes must be a multiple of {ALIGN}; got {extent_bytes}"
            )
        writable = all(buffer.flags.writeable for buffer in view.layer_buffers)
        if op == "read" and not writable:
            raise ValueError("[page_mover.read] the view must be writable; got a read-only one")
        extents = num_extents(payload_bytes(view.page_bytes), extent_bytes)
        is_read = sums is not None
        sums = np.zeros((n, extents), np.uint64) if sums is None else sums
        for name, array, shape in (
            ("fds", fds, (n,)),
            ("offsets", offsets, (n,)),
            ("seeds", seeds, (n,)),
            ("sums", sums, (n, extents)),
        ):
            if array.shape != shape:
                raise ValueError(
                    f"[page_mover.{op}] {name} must have shape {shape}; got {array.shape}"
                )
        starts = offsets.tolist()
        if any(offset % ALIGN or not 0 <= offset < 1 << 63 for offset in starts):
            raise ValueError(f"[page_mover.{op}] offsets must be multiples of {ALIGN} below 2**63")
        return _Batch(
            view,
            fds.tolist(),
            starts,
            seeds.tolist(),
            sums,
            extent_bytes,
            is_read,
            Future(),
            np.zeros(n, np.int32),
        )

    def _submit(self, batch: _Batch, queue: "deque[_Run]") -> "Future[Any]":
        batch.future.set_running_or_notify_cancel()  # what has begun cannot be cancelled
        runs = _runs(batch)
        batch.runs_left = len(runs)
        if not runs:
            batch.future.set_result(_result(batch))
            return batch.future
        with self._changed:
            if self._closed:
                raise ValueError("[page_mover] the mover must be open; got a closed one")
            while len(self._threads) < self._num_threads:
                thread = Thread(target=self._work, name="kt-kvcache-io", daemon=True)
                self._threads.append(thread)
                thread.start()
            queue.extend(runs)
            self._changed.notify_all()
        return batch.future

    def _take(self) -> _Run | None:
        """Waits for the next run that fits into the bytes in flight; None at the end."""
        with self._changed:
            while True:
                queue = self._reads or self._writes
                if queue:
                    batch, first, last = queue[0]
                    size = (last - first) * batch.payload
                    if not self._inflight or self._inflight + size <= self._limit:
                        self._inflight += size
                        return queue.popleft()
                elif self._closed:
                    return None
                self._changed.wait()

    def _work(self) -> None:
        bounce = np.frombuffer(mmap.mmap(-1, ALIGN), np.uint8)
        while (run := self._take()) is not None:
            batch, first, last = run
            size = (last - first) * batch.payload
            try:
                if size > bounce.size:
                    bounce = np.frombuffer(mmap.mmap(-1, size), np.uint8)
                self._move(batch, first, last, bounce)
            except OSError as error:  # no memory for the buffer
                batch.statuses[first:last] = error.errno or errno.EIO
            with self._changed:
                self._inflight -= size
                batch.runs_left -= 1
                is_last = not batch.runs_left
                self._changed.notify_all()
            if is_last:
                batch.future.set_result(_result(batch))

    def _move(self, batch: _Batch, first: int, last: int, bounce: Bytes) -> None:
        """Moves a run; where it fails as a whole, each page alone, so that good ones survive."""
        rows = bounce[: (last - first) * batch.payload].reshape(last - first, batch.payload)
        move = self._preadv if batch.is_read else self._pwritev
        if not batch.is_read:
            _gather(batch, first, last, rows)
        status = _transfer(move, batch.fds[first], batch.offsets[first], rows)
        if status and last - first > 1:
            for i in range(first, last):
                batch.statuses[i] = _transfer(
                    move, batch.fds[i], batch.offsets[i], rows[i - first : i - first + 1]
                )
        else:
            batch.statuses[first:last] = status
        if batch.is_read:
            _scatter(batch, first, last, rows)


def _runs(batch: _Batch) -> list[_Run]:
    runs: list[_Run] = []
    first, n = 0, len(batch.fds)
    fds, offsets, payload = batch.fds, batch.offsets, batch.payload
    for i in range(1, n + 1):
        if (
            i == n
            or fds[i] != fds[i - 1]
            or offsets[i] != offsets[i - 1] + payload
            or (i + 1 - first) * payload > _RUN_BYTES
        ):
            runs.append((batch, first, i))
            first = i
    return runs


def _result(batch: _Batch) -> Statuses | tuple[Statuses, Sums]:
    return batch.statuses if batch.is_read else (batch.statuses, batch.sums)


def _transfer(
    move: Callable[[int, list[memoryview], int], int], fd: int, offset: int, rows: Bytes
) -> int:
    """Moves all of `rows`, in several calls where the system does less than asked."""
    left = rows.data.cast("B")
    try:
        while left.nbytes:
            moved = move(fd, [left], offset)
            if moved <= 0:
                return SHORT
            left, offset = left[moved:], offset + moved
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _checksums(batch: _Batch, i: int, row: Bytes) -> list[int]:
    seed, step = batch.seeds[i], batch.extent_bytes
    return [
        xxh3_64_intdigest(row[start : start + step].data, (seed + extent) & _MASK)
        for extent, start in enumerate(range(0, batch.payload, step))
    ]


def _gather(batch: _Batch, first: int, last: int, rows: Bytes) -> None:
    ids = batch.page_ids[first:last]
    end = 0
    for buffer in batch.view.layer_buffers:
        start, end = end, end + buffer.shape[1]
        rows[:, start:end] = buffer[ids]
    rows[:, end:] = 0
    for i in range(first, last):
        batch.sums[i] = _checksums(batch, i, rows[i - first])


def _scatter(batch: _Batch, first: int, last: int, rows: Bytes) -> None:
    for i in range(first, last):
        if not batch.statuses[i]:
            good = _checksums(batch, i, rows[i - first]) == batch.sums[i].tolist()
            batch.statuses[i] = 0 if good else CHECKSUM
    good_rows = np.flatnonzero(batch.statuses[first:last] == 0)
    ids = batch.page_ids[first:last][good_rows]
    end = 0
    for buffer in batch.view.layer_buffers:
        start, end = end, end + buffer.shape[1]
        buffer[ids] = rows[good_rows, start:end]
