# SPDX-License-Identifier: Apache-2.0
"""One step: whose tokens are computed, and how much work that is. Says nothing of seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from kt_runtime.scheduler.sequence import ScheduledSequence, Sequence


class StepWork(NamedTuple):
    """What the duration of a step depends on.

    Attributes:
        num_decodes: rows that continue an answer, one per sequence.
        num_prefill_tokens: rows of prefill chunks.
        num_attended_tokens: tokens that the rows attend to, summed over all of them.
    """

    num_decodes: int = 0
    num_prefill_tokens: int = 0
    num_attended_tokens: int = 0

    @property
    def num_rows(self) -> int:
        """All rows."""
        return self.num_decodes + self.num_prefill_tokens

    def with_decode(self, num_tokens: int) -> StepWork:
        """And the newest of a sequence's num_tokens."""
        attended = self.num_attended_tokens + num_tokens
        return StepWork(self.num_decodes + 1, self.num_prefill_tokens, attended)

    def with_chunk(self, start: int, size: int) -> StepWork:
        """And `size` tokens of a sequence from position `start` on, each of which attends to all
        before it and to itself."""
        attended = self.num_attended_tokens + size * start + size * (size + 1) // 2
        return StepWork(self.num_decodes, self.num_prefill_tokens + size, attended)


@dataclass(slots=True)
class Step:
    """What the scheduler chose.

    Attributes:
        shares: decodes, then prefill chunks, each in order of service.
        work: what they add up to.
        started: sequences whose first tokens can now be computed, for the first time.
        failed: sequences that could not be given pages because of an error, out of its lines.
        num_preempted: sequences that went back to the waiting line.
    """

    shares: list[ScheduledSequence] = field(default_factory=list)
    work: StepWork = field(default_factory=StepWork)
    started: list[Sequence] = field(default_factory=list)
    failed: list[tuple[Sequence, Exception]] = field(default_factory=list)
    num_preempted: int = 0

    def add_decode(self, sequence: Sequence) -> None:
        """Compute its newest token."""
        self.shares.append(ScheduledSequence(sequence, 1))
        self.work = self.work.with_decode(sequence.num_tokens)

    def add_chunk(self, sequence: Sequence, size: int) -> None:
        """Compute its next `size` tokens."""
        self.shares.append(ScheduledSequence(sequence, size))
        self.work = self.work.with_chunk(sequence.num_computed_tokens, size)
