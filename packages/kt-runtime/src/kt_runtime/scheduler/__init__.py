# SPDX-License-Identifier: Apache-2.0
"""Which tokens are computed next. Pure Python over ints: no tensors, no text, no clock."""

from kt_runtime.scheduler.budget import StepBudget, StepTimes
from kt_runtime.scheduler.scheduler import Scheduler
from kt_runtime.scheduler.sequence import ScheduledSequence, Sequence
from kt_runtime.scheduler.step import Step, StepWork
from kt_runtime.scheduler.step_time import StepTimeModel

__all__ = (
    "ScheduledSequence",
    "Scheduler",
    "Sequence",
    "Step",
    "StepBudget",
    "StepTimeModel",
    "StepTimes",
    "StepWork",
)
