# SPDX-License-Identifier: Apache-2.0
"""The decode half of a step: every running decode, one token each, never skipped."""

from __future__ import annotations

from collections.abc import Iterable

from kt_runtime.scheduler.sequence import ScheduledSequence, Sequence


def schedule_decodes(running: Iterable[Sequence]) -> list[ScheduledSequence]:
    """All decoding sequences in arrival order. Takes no budget: decodes are served before it is
    counted."""
    return [ScheduledSequence(sequence, 1) for sequence in running if sequence.is_decoding]
