# SPDX-License-Identifier: Apache-2.0
"""The step after one that computes, scheduled ahead: the same decodes once more. Only a guess; what
came of it is asked before it is used.

Where prompts are computed or wait, nothing is guessed: such a step is long, and is scheduled when
all is known, so that nobody who arrives waits a step longer.
"""

from __future__ import annotations

from kt_runtime.scheduler.admission import Admission
from kt_runtime.scheduler.sequence import ScheduledSequence
from kt_runtime.scheduler.step import Step


def schedule_ahead(step: Step, admission: Admission) -> Step | None:
    """The step after `step`, which computes now, if each of its sequences goes on by one token and
    nobody arrives. Its sequences have the pages for that.

    Returns:
        None where something else may or will happen: prompts, a sequence that reaches its last
        token, too few pages.
    """
    if step.work.num_prefill_tokens or not is_due(step, admission):
        return None
    ahead = Step()
    for sequence, _ in step.shares:
        num_tokens = sequence.num_tokens + 1
        if num_tokens >= sequence.max_num_tokens:
            return None
        try:
            if not admission.grow(sequence, num_tokens):
                return None
        except Exception:  # whose failure it is, the step itself will tell
            return None
        ahead.shares.append(ScheduledSequence(sequence, 1))
        ahead.work = ahead.work.with_decode(num_tokens)
    return ahead


def is_due(step: Step, admission: Admission) -> bool:
    """Whether the decodes of `step` are all there is to do."""
    # Sequences that run leave their line only by ending, and others join it from the waiting one.
    return not len(admission.waiting) and len(admission.running) == len(step.shares)
