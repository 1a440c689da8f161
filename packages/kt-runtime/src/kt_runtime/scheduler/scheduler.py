# SPDX-License-Identifier: Apache-2.0
"""Composes admission, decode and prefill into one step's work. Owns no policy itself."""

from __future__ import annotations

from kt_runtime.protocols import PageAllocator
from kt_runtime.scheduler.admission import Admission
from kt_runtime.scheduler.ahead import is_due, schedule_ahead
from kt_runtime.scheduler.budget import StepBudget
from kt_runtime.scheduler.decode import schedule_decodes
from kt_runtime.scheduler.line import Line
from kt_runtime.scheduler.prefill import schedule_prefills
from kt_runtime.scheduler.sequence import Sequence
from kt_runtime.scheduler.step import Step


class Scheduler:
    """Mixed continuous batching: all decodes first, then prefill chunks in order of service.

    One budget per step and no phases: a step may hold decodes and prefill chunks together.
    Order of service is (priority, arrival). Not thread-safe: used by whoever steps the engine.

    Args:
        allocator: gives pages to sequences that start or grow; holds any one sequence whole.
        budget: bounds the prefill of a step; its max_batch_tokens is at least max_num_seqs.
        max_num_seqs: most sequences running at once.
    """

    def __init__(self, allocator: PageAllocator, budget: StepBudget, *, max_num_seqs: int) -> None:
        self._admission = Admission(allocator)
        self._budget = budget
        self._max_num_seqs = max_num_seqs

    @property
    def waiting(self) -> Line:
        """Sequences without pages; readable from any thread."""
        return self._admission.waiting

    @property
    def running(self) -> Line:
        """Sequences with pages; its length is readable from any thread."""
        return self._admission.running

    @property
    def num_loading(self) -> int:
        """How many of the running ones wait for their KV to come from slower storage."""
        return sum(sequence.is_loading for sequence in self.running)

    @property
    def has_work(self) -> bool:
        """Whether anybody runs or waits."""
        return len(self.running) + len(self.waiting) > 0

    def add(self, sequence: Sequence) -> None:
        """Join the waiting line. The engine has checked that it can fit at all."""
        self._admission.waiting.add(sequence)

    def schedule(self) -> Step:
        """The next step. Without shares there is no work.

        The caller computes the step, then advances each sequence's num_computed_tokens.
        """
        step = Step()
        self._admission.settle(step)
        schedule_decodes(step, self._admission)
        schedule_prefills(step, self._admission, self._budget, max_num_seqs=self._max_num_seqs)
        return step

    def schedule_ahead(self, step: Step) -> Step | None:
        """A guess at the step after `step`, which computes now; None where there is none."""
        return schedule_ahead(step, self._admission)

    def is_due(self, ahead: Step) -> bool:
        """Whether `schedule` would return what was scheduled ahead. Asked when the step before it
        has advanced its sequences and those that ended are removed."""
        return is_due(ahead, self._admission)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended or was aborted, and free its pages. Idempotent."""
        self._admission.remove(sequence)
