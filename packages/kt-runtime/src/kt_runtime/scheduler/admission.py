# SPDX-License-Identifier: Apache-2.0
"""Who may hold KV pages, and who gives them up. Not the page pool itself.

Optimistic: a sequence starts with pages for the tokens it has and one more, and grows while it
decodes. When no page is left, the sequence that is served last gives up all of its own.

A sequence whose prefix lies in slower storage has its pages from the start and loads in the
background. It is running in every respect but that it has nothing to compute: those behind it go
on meanwhile, and it takes its place before them again in the first step after its load ended. So
order of service is kept among all that can be computed, pages are still given out strictly in that
order, and nobody waits for a disk but those whose pages are on it.
"""

from __future__ import annotations

from kt_runtime.protocols import PageAllocator
from kt_runtime.scheduler.line import Line
from kt_runtime.scheduler.sequence import Sequence
from kt_runtime.scheduler.step import Step


class Admission:
    """Moves sequences between the waiting line and the running one, with their pages.

    Args:
        allocator: gives pages.

    Attributes:
        waiting: sequences without pages.
        running: sequences with pages.
    """

    def __init__(self, allocator: PageAllocator) -> None:
        self.waiting = Line()
        self.running = Line()
        self._allocator = allocator
        # Pages only become free when a sequence or a load ends, so a refused one is not asked
        # about again until then: matching a long prompt against the store in every step would be
        # work for nothing. Where nobody runs, what the store still reads or writes holds them.
        self._refused: tuple[Sequence, int] | None = None

    def admit(self, sequence: Sequence, step: Step) -> bool:
        """Let a waiting sequence run if its tokens' pages are there; whatever the allocator raises
        is raised, and it waits on. `step` is told who starts."""
        num_loads_ended = self._allocator.num_loads_ended
        if self.running and self._refused == (sequence, num_loads_ended):
            return False
        request = sequence.request
        table = self._allocator.allocate(
            sequence.token_ids,
            min(sequence.num_tokens + 1, sequence.num_kv_tokens),
            request.tenant,
            reuse=not request.wants_prompt_logits,
        )
        if table is None:
            self._refused = sequence, num_loads_ended
            return False
        sequence.page_table = table
        self.waiting.remove(sequence)
        self.running.add(sequence)
        if not table.is_loading:
            self._begin(sequence, step)
        return True

    def settle(self, step: Step) -> None:
        """Let those whose load has ended go on from what it brought.

        One that got less than it hoped for, and no pages for the rest, goes back to its place in
        the waiting line.
        """
        for sequence in tuple(self.running):
            table = sequence.page_table
            if table is None or not table.is_loading or not table.has_loaded:
                continue
            try:
                settled = table.settle()
            except Exception as error:
                self.remove(sequence)
                step.failed.append((sequence, error))
                continue
            if settled:
                self._begin(sequence, step)
            else:
                self._give_back(sequence)
                self.waiting.add(sequence)

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Have pages for so many tokens of a running sequence; False if too few are free."""
        assert sequence.page_table is not None  # it runs
        return sequence.page_table.grow(num_tokens)

    def preempt(self, sequence: Sequence) -> None:
        """Send a running sequence back to its place in the waiting line.

        Its full pages stay in the store as a prefix until somebody needs them, so that the tokens
        it will compute again may be few. One that was loading has nothing to lose, and starts anew.
        """
        was_loading = sequence.is_loading
        self._give_back(sequence)
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += not was_loading
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended, with its pages. Nothing happens to one that is gone."""
        self._refused = None
        if not self.waiting.remove(sequence):
            self._give_back(sequence)

    def _begin(self, sequence: Sequence, step: Step) -> None:
        assert sequence.page_table is not None  # it runs
        sequence.num_computed_tokens = sequence.page_table.num_cached_tokens
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = sequence.num_computed_tokens
            step.started.append(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        if self.running.remove(sequence):
            assert sequence.page_table is not None  # it ran
            sequence.page_table.release()
            sequence.page_table = None
