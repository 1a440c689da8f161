# SPDX-License-Identifier: Apache-2.0
"""How many prompt tokens may join a step: a limit of tokens, and one of seconds while anything
decodes.

Chunks are numerically neutral, so that nothing here can change what a request says.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Protocol

from kt_runtime.scheduler.step import StepWork

# While anything decodes, prompts get at least a page in four steps, even if that takes longer than
# allowed: a limit that is too low must slow prompts down, not stop them. They get it as a quarter
# in every step: a whole page in every fourth would take little less time in all, most of which one
# token of every stream would wait for.
_STEPS_PER_PAGE = 4


class StepTimes(Protocol):
    """What the budget needs to know of time (`step_time.StepTimeModel`)."""

    def seconds(self, work: StepWork) -> float:
        """How long such a step will take."""
        ...

    def observe(self, work: StepWork, seconds: float) -> None:
        """Such a step took that long."""
        ...


class StepBudget:
    """Bounds the prefill of each step.

    Args:
        times: predicts a step's duration.
        max_batch_tokens: most rows of a step.
        max_itl_s: most seconds of a step that decodes: what its readers wait for a token.
        page_size: tokens of a page.
    """

    def __init__(
        self, times: StepTimes, *, max_batch_tokens: int, max_itl_s: float, page_size: int
    ) -> None:
        self._times = times
        self._max_batch_tokens = max_batch_tokens
        self._max_itl_s = max_itl_s
        self._least = -(-page_size // _STEPS_PER_PAGE)

    def has_room(self, work: StepWork) -> bool:
        """Whether the token limit admits another row."""
        return work.num_rows < self._max_batch_tokens

    def chunk(self, work: StepWork, start: int, wanted: int) -> int:
        """How many of a sequence's next tokens join the step; asked in order of service.

        Args:
            work: the step so far.
            start: position of the first of them.
            wanted: how many there are.

        Returns:
            0 (none in this step), or up to `wanted`.
        """
        most = max(0, min(wanted, self._max_batch_tokens - work.num_rows))
        if work.num_decodes == 0:
            return most
        least = min(most, max(0, self._least - work.num_prefill_tokens))
        return max(least, self._in_time(work, start, most))

    def _in_time(self, work: StepWork, start: int, most: int) -> int:
        """The largest chunk whose step is predicted to end in time; 0 if none is."""

        def seconds(size: int) -> float:
            return self._times.seconds(work.with_chunk(start, size))

        if seconds(most) <= self._max_itl_s:  # the usual case asks once
            return most
        return max(0, bisect_right(range(most), self._max_itl_s, key=seconds) - 1)
