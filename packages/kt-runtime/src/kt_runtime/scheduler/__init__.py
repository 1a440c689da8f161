# SPDX-License-Identifier: Apache-2.0
"""Which tokens are computed next. Pure Python over ints: no tensors, no text, no clock."""

from kt_runtime.scheduler.scheduler import Scheduler
from kt_runtime.scheduler.sequence import ScheduledSequence, Sequence

__all__ = ("ScheduledSequence", "Scheduler", "Sequence")
