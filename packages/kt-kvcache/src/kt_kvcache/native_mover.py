# SPDX-License-Identifier: Apache-2.0
"""The page mover of the compiled core; import it only where native.HAS_CORE. What it does is
defined by its twin, page_mover.py.
"""

from concurrent.futures import Future
from threading import Lock, Thread, current_thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kt_kvcache import _core
from kt_kvcache.arena import PageView
from kt_kvcache.page_mover import ALIGN, Statuses, Sums, num_extents, payload_bytes


class NativePageMover:
    """A PageMover whose threads never hold the GIL: reads, writes, checksums and copies go on
    whatever Python does. One Python thread sets the futures of all batches that have ended.
    """

    def __init__(
        self, num_threads: int = 8, inflight_bytes: int = 32 << 20, *, uring: bool = False
    ) -> None:
        """Starts no thread before the first call.

        Args:
            num_threads: that move pages, or with io_uring only work on their bytes. While some
                are at checksums and copies, the others keep the drive busy, which takes four.
            inflight_bytes: bytes in flight at most; a page that has more travels alone.
            uring: has the kernel keep all of these bytes in flight, whatever the threads do.

        Raises:
            OSError: the system refuses an io_uring.
        """
        self._mover = _core.PageMover(num_threads, inflight_bytes, uring)
        self.io = "uring" if uring else "threads"
        self._lock = Lock()
        self._waker: Thread | None = None

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
        statuses = np.zeros(len(view.page_ids), np.int32)
        return self._move(
            True, view, fds, offsets, seeds, sums, extent_bytes, statuses, result=statuses
        )

    def write(
        self,
        view: PageView,
        fds: NDArray[np.int32],
        offsets: NDArray[np.uint64],
        seeds: NDArray[np.uint64],
        extent_bytes: int,
    ) -> "Future[tuple[Statuses, Sums]]":
        """See ``PageMover.write``."""
        n = len(view.page_ids)
        statuses = np.zeros(n, np.int32)
        extents = num_extents(payload_bytes(view.page_bytes), max(extent_bytes, ALIGN))
        sums = np.zeros((n, extents), np.uint64)
        return self._move(
            False, view, fds, offsets, seeds, sums, extent_bytes, statuses, result=(statuses, sums)
        )

    def close(self) -> None:
        """Ends the mover once what was asked is done; idempotent."""
        self._mover.close()
        with self._lock:
            waker = self._waker
        if waker is not None and waker is not current_thread():
            waker.join()

    def _move(
        self,
        is_read: bool,
        view: PageView,
        fds: NDArray[np.int32],
        offsets: NDArray[np.uint64],
        seeds: NDArray[np.uint64],
        sums: Sums,
        extent_bytes: int,
        statuses: Statuses,
        result: Any,
    ) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # what has begun cannot be cancelled
        ended = (future, result)
        layers, page_ids = view.layer_buffers, view.page_ids
        if self._mover.move(
            is_read, layers, page_ids, fds, offsets, seeds, sums, extent_bytes, statuses, ended
        ):
            self._start_waker()
        else:
            future.set_result(result)
        return future

    def _start_waker(self) -> None:
        with self._lock:
            if self._waker is None:
                self._waker = Thread(target=self._wake, name="kt-kvcache-done", daemon=True)
                self._waker.start()

    def _wake(self) -> None:
        while batches := self._mover.wait():
            for future, result in batches:
                future.set_result(result)
