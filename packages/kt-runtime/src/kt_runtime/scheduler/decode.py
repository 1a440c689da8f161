# SPDX-License-Identifier: Apache-2.0
"""The decode half of a step: every running decode, one token each, never skipped for want of
budget."""

from __future__ import annotations

from kt_runtime.scheduler.admission import Admission
from kt_runtime.scheduler.step import Step


def schedule_decodes(step: Step, admission: Admission) -> None:
    """All decoding sequences in order of service, which takes no budget.

    One that needs a page when none is left takes those of the sequence served last, or goes back
    to the waiting line if that is itself. The first can therefore always go on: the pool holds
    any one sequence. (Alone it may still send itself back, where it computed pages that somebody
    else had stored meanwhile, and holds both; it comes back on the stored ones at once.)
    """
    running = admission.running
    for sequence in tuple(running):
        if sequence.page_table is None:
            return  # preempted by one before it, as all that follow
        if not sequence.is_decoding:
            continue
        try:
            while not admission.grow(sequence, sequence.num_tokens):
                victim = running.last
                admission.preempt(victim)
                step.num_preempted += 1
                if victim is sequence:
                    return
        except Exception as error:
            # Whatever went wrong over its pages is its failure, not the step's.
            admission.remove(sequence)
            step.failed.append((sequence, error))
            continue
        step.add_decode(sequence)
