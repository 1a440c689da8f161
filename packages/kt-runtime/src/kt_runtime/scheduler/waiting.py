# SPDX-License-Identifier: Apache-2.0
"""The waiting line: first come, first served, leave from anywhere. Not a priority queue."""

from __future__ import annotations

from kt_runtime.scheduler.sequence import Sequence


class WaitingLine:
    """Sequences in order of arrival. All operations are O(1)."""

    def __init__(self) -> None:
        # A dict keeps insertion order and gives up any entry in O(1).
        self._line: dict[str, Sequence] = {}

    def __len__(self) -> int:
        return len(self._line)

    def push(self, sequence: Sequence) -> None:
        """Join at the end."""
        self._line[sequence.request.request_id] = sequence

    @property
    def head(self) -> Sequence | None:
        """The one to be served next, or None."""
        return next(iter(self._line.values()), None)

    def remove(self, request_id: str) -> Sequence | None:
        """Leave from anywhere; None if it does not wait here."""
        return self._line.pop(request_id, None)
