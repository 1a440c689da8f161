# SPDX-License-Identifier: Apache-2.0
"""Composes waiting line, admission, decode and prefill into one step's work. Owns no policy
itself."""

from __future__ import annotations

from collections.abc import Collection

from kt_runtime.protocols import PageAllocator
from kt_runtime.scheduler.admission import Admission
from kt_runtime.scheduler.decode import schedule_decodes
from kt_runtime.scheduler.prefill import schedule_prefills
from kt_runtime.scheduler.sequence import ScheduledSequence, Sequence
from kt_runtime.scheduler.waiting import WaitingLine


class Scheduler:
    """Mixed continuous batching: all decodes first, then prefill chunks, first come first served.

    One token budget per step and no phases: a step may hold decodes and prefill chunks together.
    Not thread-safe: used by whoever steps the engine.

    Args:
        allocator: gives pages to sequences that start.
        max_batch_tokens: most tokens in one step; at least max_num_seqs.
        max_num_seqs: most sequences running at once.
    """

    def __init__(
        self, allocator: PageAllocator, *, max_batch_tokens: int, max_num_seqs: int
    ) -> None:
        self._admission = Admission(allocator)
        self._max_batch_tokens = max_batch_tokens
        self._max_num_seqs = max_num_seqs
        self._waiting = WaitingLine()
        self._running: dict[str, Sequence] = {}  # in order of admission, which is arrival order

    @property
    def num_waiting(self) -> int:
        """Sequences without pages."""
        return len(self._waiting)

    @property
    def running(self) -> Collection[Sequence]:
        """Sequences with pages, in arrival order."""
        return self._running.values()

    def add(self, sequence: Sequence) -> None:
        """Join the waiting line. The engine has checked that it can fit at all."""
        self._waiting.push(sequence)

    def schedule(self) -> list[ScheduledSequence]:
        """The next step: decodes, then prefills, each in arrival order. Empty if there is no work.

        The caller computes the step, then advances each sequence's num_computed_tokens.
        """
        step = schedule_decodes(self._running.values())
        step += schedule_prefills(
            self._running,
            self._waiting,
            self._admission,
            budget=self._max_batch_tokens - len(step),
            max_num_seqs=self._max_num_seqs,
        )
        return step

    def remove(self, request_id: str) -> Sequence | None:
        """Forget a sequence that ended or was aborted, and free its pages; None if it is
        unknown."""
        sequence = self._running.pop(request_id, None) or self._waiting.remove(request_id)
        if sequence is not None:
            self._admission.release(sequence)
        return sequence
