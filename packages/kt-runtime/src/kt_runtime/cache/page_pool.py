# SPDX-License-Identifier: Apache-2.0
"""Gives sequences their page ids out of the prefix store. Ids only: the tensors are in
kv_tensors.py.

With device="cpu" the pool is the store's host tier: a page id is the store's slot and a row of the
KV tensors, so reuse copies nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from kt_runtime.protocols import (
    PrefixChain,
    PrefixLease,
    PrefixReservation,
    PrefixSpace,
)


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

    def allocate(
        self, prompt_token_ids: Sequence[int], num_tokens: int, tenant: str | None, reuse: bool
    ) -> SequencePages | None:
        """Pages for `num_tokens` tokens that begin with the prompt, or None if too few are free.

        At least one prompt token is left to compute, because its logits choose the next one.
        """
        reuse = reuse and self._reuse
        space = self._space_of(tenant)
        chain = space.chain(prompt_token_ids if reuse else ())
        lease = space.acquire(chain, max_tokens=len(prompt_token_ids) - 1)
        num_pages = -(-num_tokens // self._page_size)
        num_cached_pages = len(lease.page_ids)
        try:
            reservation = space.reserve(chain, num_cached_pages, num_pages - num_cached_pages)
        except self._out_of_pages:
            lease.release()
            return None
        return SequencePages(
            lease,
            reservation,
            chain if reuse else None,
            num_chained_tokens=len(prompt_token_ids),
            page_size=self._page_size,
        )


class SequencePages:
    """One sequence's pages (a `PageTable`): a leased prefix, then reserved pages it fills
    itself."""

    def __init__(
        self,
        lease: PrefixLease,
        reservation: PrefixReservation,
        chain: PrefixChain | None,
        *,
        num_chained_tokens: int,
        page_size: int,
    ) -> None:
        self._lease = lease
        self._reservation = reservation
        self._chain = chain
        self._num_chained_tokens = num_chained_tokens
        self._page_size = page_size
        self._num_leased_pages = len(lease.page_ids)
        self._num_committed_pages = self._num_leased_pages
        self._released = False
        # int32 array: the batch builder reads it without a Python object per page.
        self._page_ids = array("i", (*lease.page_ids, *reservation.page_ids))
        self._num_cached_tokens = self._num_leased_pages * page_size

    @property
    def page_ids(self) -> Sequence[int]:
        """Pages in sequence order."""
        return self._page_ids

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that need no computing."""
        return self._num_cached_tokens

    def commit(self, token_ids: Sequence[int], num_computed_tokens: int) -> None:
        """Publish the pages that are now full, while the sequence still runs.

        Others can then start from them, and a follow-up turn finds the answer as well as the
        prompt.
        """
        num_full_pages = num_computed_tokens // self._page_size
        if self._chain is None or num_full_pages <= self._num_committed_pages:
            return
        if num_computed_tokens > self._num_chained_tokens:
            self._chain.extend(token_ids[self._num_chained_tokens : num_computed_tokens])
            self._num_chained_tokens = num_computed_tokens
        # Nothing to wait for: the step that wrote the pages has returned.
        self._reservation.commit(num_full_pages - self._num_committed_pages, after=None)
        self._num_committed_pages = num_full_pages

    def release(self) -> None:
        """Give the pages back. Idempotent."""
        if not self._released:
            self._released = True
            self._reservation.release()
            self._lease.release()
