# SPDX-License-Identifier: Apache-2.0
"""A result that comes later, for threads and for asyncio alike; it computes nothing."""

import asyncio
from collections.abc import Generator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Completion(Future[T]):
    """A ``concurrent.futures.Future`` that can be awaited too.

    ``done()``, ``result(timeout)`` and ``add_done_callback(f)`` as there; callbacks run in a thread
    of the store and must be brief.
    """

    def __await__(self) -> Generator[Any, None, T]:
        """Waits in the running event loop."""
        return asyncio.wrap_future(self).__await__()

    def settle(self, result: T) -> None:
        """Sets the result unless there is one; of several threads, one succeeds."""
        with suppress(InvalidStateError):
            self.set_result(result)
