# SPDX-License-Identifier: Apache-2.0
"""Spreads bytes over time: how long each batch waits for those before it, and a thread that waits
for reads. It moves nothing itself.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

# What may move at once after a pause: a few batches, so that a lone one waits for nothing.
_BURST_S = 0.1


class TokenBucket:
    """Bytes that may move per second; thread-safe."""

    def __init__(self, bytes_per_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts full; 0 bytes per second is no limit. `clock` gives seconds from any start."""
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._paid_until = 0.0  # when what was taken has been paid for

    def take(self, num_bytes: int) -> float:
        """Takes bytes, as many as wanted; returns the seconds after which they may move."""
        if not self._bytes_per_s:
            return 0.0
        with self._lock:
            now = self._clock()
            start = max(self._paid_until, now - _BURST_S)
            self._paid_until = start + num_bytes / self._bytes_per_s
            return max(0.0, start - now)


class Delayed:
    """Makes calls no sooner than a bucket lets their bytes move, in order; thread-safe."""

    def __init__(self, bucket: TokenBucket) -> None:
        """Starts no thread before a call has to wait."""
        self._bucket = bucket
        self._changed = threading.Condition()
        self._calls: deque[tuple[float, Callable[[], None]]] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False

    def call(self, num_bytes: int, call: Callable[[], None]) -> None:
        """Makes a brief call now, or later in a thread of its own."""
        with self._changed:
            delay = self._bucket.take(num_bytes)
            waits = bool(self._calls) or delay > 0
            if waits and not self._closed:
                self._calls.append((time.monotonic() + delay, call))
                self._changed.notify()
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name="kt-kvcache-rate", daemon=True
                    )
                    self._thread.start()
                return
        call()

    def close(self) -> None:
        """Makes all calls that wait, now; idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._calls and not self._closed:
                    self._changed.wait()
                if not self._calls:
                    return
                due, call = self._calls[0]
                left = due - time.monotonic()
                if left > 0 and not self._closed:
                    self._changed.wait(left)
                    continue
                self._calls.popleft()
            call()
