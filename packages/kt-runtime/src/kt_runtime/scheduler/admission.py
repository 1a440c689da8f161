# SPDX-License-Identifier: Apache-2.0
"""Who may hold KV pages, and who gives them up. Not the page pool itself.

Optimistic: a sequence starts with pages for the tokens it has and one more, and grows while it
decodes. When no page is left, the sequence that is served last gives up all of its own.
"""

from __future__ import annotations

from kt_runtime.protocols import PageAllocator
from kt_runtime.scheduler.line import Line
from kt_runtime.scheduler.sequence import Sequence


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
        # Pages only become free when a sequence ends, so a refused one is not asked about again
        # until then: matching a long prompt against the store in every step would be work for
        # nothing. One that was preempted is refused at once: what it gave up is a page less by now.
        self._refused: Sequence | None = None

    def admit(self, sequence: Sequence) -> bool:
        """Let a waiting sequence run if its tokens' pages are there; whatever the allocator raises
        is raised, and it waits on."""
        if sequence is self._refused:
            return False
        request = sequence.request
        table = self._allocator.allocate(
            sequence.token_ids,
            min(sequence.num_tokens + 1, sequence.num_kv_tokens),
            request.tenant,
            reuse=not request.wants_prompt_logits,
        )
        if table is None:
            self._refused = sequence
            return False
        sequence.page_table = table
        sequence.num_computed_tokens = table.num_cached_tokens
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = table.num_cached_tokens
        self.waiting.remove(sequence)
        self.running.add(sequence)
        return True

    def grow(self, sequence: Sequence) -> bool:
        """Have pages for all tokens of a running sequence; False if too few are free."""
        assert sequence.page_table is not None  # it runs
        return sequence.page_table.grow(sequence.num_tokens)

    def preempt(self, sequence: Sequence) -> None:
        """Send a running sequence back to its place in the waiting line.

        Its full pages stay in the store as a prefix until somebody needs them, so that the tokens
        it will compute again may be few.
        """
        self._give_back(sequence)
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += 1
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended, with its pages. Nothing happens to one that is gone."""
        self._refused = None
        if not self.waiting.remove(sequence):
            self._give_back(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        if self.running.remove(sequence):
            assert sequence.page_table is not None  # it ran
            sequence.page_table.release()
            sequence.page_table = None
