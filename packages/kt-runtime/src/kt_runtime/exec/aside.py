# SPDX-License-Identifier: Apache-2.0
"""A thread for what can be done while the forward pass runs. Knows nothing of what that is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

_Result = TypeVar("_Result")
_Job = Callable[[], None]


class Aside:
    """Runs one job beside what its owner does, and never longer: whatever the two share needs no
    locks, as long as the owner's own work leaves it alone.

    The forward stays in the owner's thread, so that it starts and ends without waiting for another
    thread to wake up.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._ends: SimpleQueue[BaseException | None] = SimpleQueue()
        # A daemon like its owner, which closes it.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def during(self, work: Callable[[], _Result], job: _Job) -> _Result:
        """work() here and job() in the other thread; returns when both have ended.

        Raises:
            BaseException: what the job raised, else what the work raised.
        """
        self._jobs.put(job)
        try:
            return work()
        finally:
            error = self._ends.get()
            if error is not None:
                raise error

    def close(self) -> None:
        """End the thread. Not while a job runs."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:  # raised where it is waited for
                self._ends.put(error)
            else:
                self._ends.put(None)
