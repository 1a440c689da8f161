# SPDX-License-Identifier: Apache-2.0
"""When a waiting sequence may start: when all pages it can ever need are its own. Not the page pool
itself.

Conservative on purpose: a running sequence can never run out of pages, so nothing is ever
preempted. Another policy replaces this file only.
"""

from __future__ import annotations

from kt_runtime.protocols import PageAllocator
from kt_runtime.scheduler.sequence import Sequence


class Admission:
    """Reserves pages for prompt and whole output, minus those reused from a stored prefix."""

    def __init__(self, allocator: PageAllocator) -> None:
        self._allocator = allocator
        # Pages only become free when a sequence ends, so a refused one is not asked about again
        # until then: matching a long prompt against the store in every step would be work for
        # nothing.
        self._refused: Sequence | None = None

    def admit(self, sequence: Sequence) -> bool:
        """Give the sequence its page table if the pages are there."""
        if sequence is self._refused:
            return False
        request = sequence.request
        table = self._allocator.allocate(
            sequence.token_ids,
            sequence.num_kv_tokens,
            request.tenant,
            reuse=not request.wants_prompt_logits,
        )
        if table is None:
            self._refused = sequence
            return False
        sequence.page_table = table
        sequence.num_computed_tokens = table.num_cached_tokens
        return True

    def release(self, sequence: Sequence) -> None:
        """Take the pages back from a sequence that ended, if it ever had any."""
        self._refused = None
        if sequence.page_table is not None:
            sequence.page_table.release()
