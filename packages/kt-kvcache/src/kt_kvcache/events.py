# SPDX-License-Identifier: Apache-2.0
"""What enters and leaves a store, as a stream for whoever routes requests to where their KV is;
it calls nobody back.
"""

from collections import deque
from collections.abc import Iterable
from enum import Enum
from threading import Lock
from types import TracebackType
from typing import NamedTuple


class Tier(Enum):
    """Where a page lies."""

    MEMORY = "memory"
    DISK = "disk"


class Stored(NamedTuple):
    """A page can be acquired from a tier.

    Attributes:
        page_hash: its chain hash.
        parent_hash: of the page before it, or the ns_key.
        tier: where it is.
    """

    page_hash: bytes
    parent_hash: bytes
    tier: Tier


class Removed(NamedTuple):
    """A page was evicted from a tier or dropped; attributes as for ``Stored``."""

    page_hash: bytes
    parent_hash: bytes
    tier: Tier


PageEvent = Stored | Removed


class EventStream:
    """Events not yet polled, oldest first, at most `max_pending`; made by ``KVStore.events``.

    Thread-safe. It begins with a ``Stored`` for each page that is cached then. An event that
    finds it full is lost and counted: what this stream says is incomplete from there on, and a
    new one begins complete.
    """

    def __init__(self, max_pending: int) -> None:
        """Starts empty."""
        self._max_pending = max_pending
        self._pending: deque[PageEvent] = deque()
        self._lock = Lock()  # two tiers may push at once, each under its own lock
        self._num_dropped = 0
        self.closed = False

    @property
    def num_dropped(self) -> int:
        """Events lost because the stream was full."""
        return self._num_dropped

    def poll(self) -> list[PageEvent]:
        """Returns and forgets what has happened since the last call; never waits."""
        with self._lock:
            pending, self._pending = self._pending, deque()
        return list(pending)

    def push(self, events: Iterable[PageEvent]) -> None:
        """Adds events; the store's tiers call this under their locks."""
        with self._lock:
            for event in events:
                if len(self._pending) < self._max_pending:
                    self._pending.append(event)
                else:
                    self._num_dropped += 1

    def close(self) -> None:
        """Ends the stream; the store forgets it at its next event. Idempotent."""
        self.closed = True

    def __enter__(self) -> "EventStream":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
