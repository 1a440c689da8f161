# SPDX-License-Identifier: Apache-2.0
"""Requests in flight, and what other threads tell the one that steps: arrivals, aborts, the end.
Schedules and computes nothing.
"""

from __future__ import annotations

import itertools
import secrets
import threading

from kt_runtime.core import EngineClosedError, FinishReason, QueueFullError, Request
from kt_runtime.scheduler import Scheduler, Sequence


class Inbox:
    """Thread-safe; only the stepping thread takes what it holds.

    Args:
        scheduler: gets the arrivals.
        max_waiting: most requests that wait.
        max_waiting_tokens: most prompt tokens that wait; None is no limit.
        max_model_len: most tokens of prompt and output together.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        max_waiting: int,
        max_waiting_tokens: int | None,
        max_model_len: int,
    ) -> None:
        self._scheduler = scheduler
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._max_model_len = max_model_len
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._live: dict[str, Sequence] = {}
        self._arrivals: list[Sequence] = []
        self._aborts: dict[str, FinishReason] = {}
        self._closed: str | None = None
        self._news = False  # since `take`

    def __len__(self) -> int:
        """Requests that have not ended."""
        with self._changed:
            return len(self._live)

    def __contains__(self, request_id: str) -> bool:
        """Whether it has not ended."""
        with self._changed:
            return request_id in self._live

    @property
    def closed_reason(self) -> str | None:
        """Why no more requests are taken, or None while they are."""
        return self._closed

    def add(self, request: Request) -> None:
        """Queue a request that was checked by itself.

        Raises:
            QueueFullError, EngineClosedError: it cannot be taken now.
            ValueError: another one in flight has its id.
        """
        seed = request.sampling.seed
        with self._changed:
            if self._closed is not None:
                raise EngineClosedError(self._closed)
            if request.request_id in self._live:
                raise ValueError(
                    "[engine.add] request_id must be unique among requests in flight; "
                    f"got {request.request_id!r}"
                )
            self._check_queue(len(request.prompt_token_ids))
            sequence = Sequence(
                request,
                arrival=next(self._numbers),
                seed=secrets.randbits(64) if seed is None else seed,
                max_model_len=self._max_model_len,
            )
            self._live[request.request_id] = sequence
            self._arrivals.append(sequence)
            self.wake()

    def abort(self, request_id: str, reason: FinishReason) -> None:
        """Have a request ended; the first reason counts. One that is not in flight is ignored."""
        with self._changed:
            if request_id in self._live:
                self._aborts.setdefault(request_id, reason)
                self.wake()

    def close(self, reason: str) -> None:
        """Take no more requests, and have all ended; the first reason counts."""
        with self._changed:
            self._closed = self._closed or reason
            for request_id in self._live:
                self._aborts.setdefault(request_id, "abort")
            self.wake()

    def end(self, request_id: str) -> None:
        """Forget a request whose last event was made."""
        with self._changed:
            del self._live[request_id]

    def take(self) -> list[tuple[Sequence, FinishReason]]:
        """Hand arrivals to the scheduler. Returns those to be ended, and why."""
        with self._changed:
            self._news = False  # before the scheduler looks: what ends later is news again
            arrivals, self._arrivals = self._arrivals, []
            for sequence in arrivals:
                self._scheduler.add(sequence)
            aborts, self._aborts = self._aborts, {}
            return [(self._live[i], reason) for i, reason in aborts.items() if i in self._live]

    def wake(self) -> None:
        """There is news."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until a request is in flight or none are taken; False if neither came in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: len(self._live) > 0 or self._closed is not None, seconds
            )

    def wait_for_news(self, seconds: float) -> None:
        """Wait until there is news since `take`, but not for ever, and not once closed."""
        with self._changed:
            if self._closed is None:
                self._changed.wait_for(lambda: self._news, seconds)

    def _check_queue(self, num_prompt_tokens: int) -> None:
        """Raises QueueFullError if such a prompt may not wait now."""
        waiting = self._scheduler.waiting
        if len(waiting) + len(self._arrivals) >= self._max_waiting:
            raise QueueFullError(self._max_waiting)
        limit = self._max_waiting_tokens
        if limit is not None:
            queued = waiting.num_tokens + sum(s.num_prompt_tokens for s in self._arrivals)
            # Where nothing waits, even a longer prompt may: it would be refused for ever.
            if queued and queued + num_prompt_tokens > limit:
                raise QueueFullError(limit, "prompt tokens")
