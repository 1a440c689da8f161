# SPDX-License-Identifier: Apache-2.0
"""The prefill half of a step: prompt chunks in strict arrival order from the tokens that decodes
left."""

from __future__ import annotations

from kt_runtime.scheduler.admission import Admission
from kt_runtime.scheduler.sequence import ScheduledSequence, Sequence
from kt_runtime.scheduler.waiting import WaitingLine


def schedule_prefills(
    running: dict[str, Sequence],
    waiting: WaitingLine,
    admission: Admission,
    *,
    budget: int,
    max_num_seqs: int,
) -> list[ScheduledSequence]:
    """Chunks of running prompts, then of newly admitted ones, which move from waiting to running.

    Stops at the first sequence that cannot be admitted: a later, smaller one never passes it.

    Args:
        budget: tokens this step may still compute.
        max_num_seqs: most sequences running at once.
    """
    scheduled: list[ScheduledSequence] = []
    for sequence in running.values():
        if budget == 0:
            return scheduled
        if not sequence.is_decoding:
            budget -= _take_chunk(sequence, budget, scheduled)
    while budget > 0 and len(running) < max_num_seqs:
        head = waiting.head
        if head is None or not admission.admit(head):
            break
        waiting.remove(head.request.request_id)
        running[head.request.request_id] = head
        budget -= _take_chunk(head, budget, scheduled)
    return scheduled


def _take_chunk(sequence: Sequence, budget: int, scheduled: list[ScheduledSequence]) -> int:
    size = min(sequence.num_remaining_tokens, budget, sequence.request.chunk_size or budget)
    scheduled.append(ScheduledSequence(sequence, size))
    return size
