# SPDX-License-Identifier: Apache-2.0
"""Sequences in order of service: who waits, and who runs. Decides nothing."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from kt_runtime.scheduler.sequence import Sequence

_order = attrgetter("order")


class Line:
    """Sequences by `order`. They may join and leave anywhere: a preempted one comes back to its own
    place.

    Finding a place is O(log n); the move in memory that follows is small beside any step.
    """

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []
        self._num_tokens = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    @property
    def num_tokens(self) -> int:
        """Prompt tokens of all of them."""
        return self._num_tokens

    @property
    def first(self) -> Sequence | None:
        """The one to be served next, or None."""
        return self._sequences[0] if self._sequences else None

    @property
    def last(self) -> Sequence:
        """The one to be served after all others; the line must not be empty."""
        return self._sequences[-1]

    def add(self, sequence: Sequence) -> None:
        """Join at its place."""
        insort(self._sequences, sequence, key=_order)
        self._num_tokens += sequence.num_prompt_tokens

    def remove(self, sequence: Sequence) -> bool:
        """Leave; False if it is not here."""
        index = bisect_left(self._sequences, sequence.order, key=_order)
        if index == len(self._sequences) or self._sequences[index] is not sequence:
            return False
        del self._sequences[index]
        self._num_tokens -= sequence.num_prompt_tokens
        return True
