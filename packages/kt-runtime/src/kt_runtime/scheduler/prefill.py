# SPDX-License-Identifier: Apache-2.0
"""The prefill half of a step: chunks in strict order of service from what the decodes left of the
budget."""

from __future__ import annotations

from kt_runtime.scheduler.admission import Admission
from kt_runtime.scheduler.budget import StepBudget
from kt_runtime.scheduler.sequence import Sequence
from kt_runtime.scheduler.step import Step


def schedule_prefills(
    step: Step, admission: Admission, budget: StepBudget, *, max_num_seqs: int
) -> None:
    """Chunks of running sequences, then of newly admitted ones.

    Stops at the first sequence that gets less than it could compute, or no pages: a later, smaller
    one never passes it. One that is loading could compute nothing: those behind it go on.

    Args:
        step: holds the decodes; gets the chunks.
        max_num_seqs: most sequences running at once.
    """
    running, waiting = admission.running, admission.waiting
    for sequence in running:
        if sequence.is_decoding or sequence.is_loading:
            continue
        if not _take_chunk(step, sequence, budget):
            return
    while len(running) < max_num_seqs:
        head = waiting.first
        if head is None or not budget.has_room(step.work):
            return
        try:
            admitted = admission.admit(head, step)
        except Exception as error:
            # Out of memory, say: this sequence cannot start, but others may.
            admission.remove(head)
            step.failed.append((head, error))
            continue
        if not admitted:
            return
        if not head.is_loading and not _take_chunk(step, head, budget):
            return


def _take_chunk(step: Step, sequence: Sequence, budget: StepBudget) -> bool:
    """Whether the sequence got as much as it may have in one step."""
    wanted = sequence.num_remaining_tokens
    if sequence.request.chunk_size is not None:
        wanted = min(wanted, sequence.request.chunk_size)
    size = budget.chunk(step.work, sequence.num_computed_tokens, wanted)
    if size > 0:
        step.add_chunk(sequence, size)
    return size == wanted
