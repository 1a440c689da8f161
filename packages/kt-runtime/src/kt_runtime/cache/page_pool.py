# SPDX-License-Identifier: Apache-2.0
"""Gives sequences their pages out of the prefix store. What one sequence does with them is
sequence_pages.py; the tensors are in kv_tensors.py.

With device="cpu" the pool is the store's host tier: a page id is the store's slot and a row of the
KV tensors, so reuse copies nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kt_runtime.cache.sequence_pages import SequencePages
from kt_runtime.protocols import PrefixSpace


class PagePool:
    """Pages for sequences, reusing stored prefixes (a `PageAllocator`). One thread at a time.

    Args:
        space_of: the store's namespace of a tenant; equal tenants give the same one.
        page_size: tokens per page.
        out_of_pages: what the store raises when it cannot reserve.
        reuse: False turns prefix reuse off for all sequences.
    """

    def __init__(
        self,
        space_of: Callable[[str | None], PrefixSpace],
        page_size: int,
        out_of_pages: type[Exception],
        *,
        reuse: bool = True,
    ) -> None:
        self._space_of = space_of
        self._page_size = page_size
        self._out_of_pages = out_of_pages
        self._reuse = reuse
        self._num_loads_ended = 0
        self._on_load_ended: Callable[[], object] | None = None

    @property
    def num_loads_ended(self) -> int:
        """How many loads have ended: with each, pages may have come free."""
        return self._num_loads_ended

    def notify(self, on_load_ended: Callable[[], object]) -> None:
        """Have `on_load_ended` called, from any thread, whenever a load has ended: its sequence can
        go on, or pages may have come free."""
        self._on_load_ended = on_load_ended

    def allocate(
        self, token_ids: Sequence[int], num_tokens: int, tenant: str | None, reuse: bool
    ) -> SequencePages | None:
        """Pages for `num_tokens` tokens that begin with token_ids, or None if too few are free.

        At least one of token_ids is left to compute, because its logits choose the next one.
        """
        publishes = reuse and self._reuse
        space = self._space_of(tenant)
        chain = space.chain(token_ids if publishes else ())
        lease = space.acquire(chain, max_tokens=len(token_ids) - 1, tail=True)
        pages = SequencePages(
            space,
            chain,
            lease,
            self._out_of_pages,
            num_chained_tokens=len(token_ids) if publishes else None,
            page_size=self._page_size,
        )
        try:
            if pages.start(num_tokens, self._load_ended):
                return pages
        except BaseException:
            pages.release()
            raise
        pages.release()
        return None

    def _load_ended(self, _: object) -> None:
        # Loads end in several threads; a lost count would still be a change, which is all that
        # readers look for.
        self._num_loads_ended += 1
        if self._on_load_ended is not None:
            self._on_load_ended()
