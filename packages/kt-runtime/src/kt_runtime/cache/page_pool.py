# SPDX-License-Identifier: Apache-2.0
"""Gives sequences their page ids out of the prefix store. Ids only: the tensors are in
kv_tensors.py.

With device="cpu" the pool is the store's host tier: a page id is the store's slot and a row of the
KV tensors, so reuse copies nothing.
"""

from __future__ import annotations

from array import array
from collections import deque
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
        self, token_ids: Sequence[int], num_tokens: int, tenant: str | None, reuse: bool
    ) -> SequencePages | None:
        """Pages for `num_tokens` tokens that begin with token_ids, or None if too few are free.

        At least one of token_ids is left to compute, because its logits choose the next one.
        """
        publishes = reuse and self._reuse
        space = self._space_of(tenant)
        chain = space.chain(token_ids if publishes else ())
        lease = space.acquire(chain, max_tokens=len(token_ids) - 1)
        pages = SequencePages(
            space,
            chain,
            lease,
            self._out_of_pages,
            num_chained_tokens=len(token_ids) if publishes else None,
            page_size=self._page_size,
        )
        try:
            if pages.grow(num_tokens):
                return pages
        except BaseException:
            pages.release()
            raise
        pages.release()
        return None


class SequencePages:
    """One sequence's pages (a `PageTable`): a leased prefix, then reserved pages it fills itself.

    Args:
        space, chain, lease: the sequence's namespace, its tokens so far, its stored prefix.
        out_of_pages: what the space raises when it cannot reserve.
        num_chained_tokens: tokens in the chain; None for a sequence that publishes nothing.
        page_size: tokens per page.
    """

    def __init__(
        self,
        space: PrefixSpace,
        chain: PrefixChain,
        lease: PrefixLease,
        out_of_pages: type[Exception],
        *,
        num_chained_tokens: int | None,
        page_size: int,
    ) -> None:
        self._space = space
        self._chain = chain
        self._lease = lease
        self._out_of_pages = out_of_pages
        self._num_chained_tokens = num_chained_tokens
        self._page_size = page_size
        # int32 array: the batch builder reads it without a Python object per page.
        self._page_ids = array("i", lease.page_ids)
        self._num_cached_tokens = len(self._page_ids) * page_size
        self._num_committed_pages = len(self._page_ids)
        self._reservations: list[PrefixReservation] = []
        # Those that still have pages to commit, the oldest first, with the place each ends at.
        self._uncommitted: deque[tuple[PrefixReservation, int]] = deque()
        self._released = False

    @property
    def page_ids(self) -> Sequence[int]:
        """Pages in sequence order."""
        return self._page_ids

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that need no computing."""
        return self._num_cached_tokens

    def grow(self, num_tokens: int) -> bool:
        """Reserve what is missing of the pages of `num_tokens` tokens; False if too few are
        free."""
        first_page = len(self._page_ids)
        num_missing = -(-num_tokens // self._page_size) - first_page
        if num_missing <= 0:
            return True
        try:
            reservation = self._space.reserve(self._chain, first_page, num_missing)
        except self._out_of_pages:
            return False
        self._reservations.append(reservation)
        self._page_ids.extend(reservation.page_ids)
        self._uncommitted.append((reservation, len(self._page_ids)))
        return True

    def commit(self, token_ids: Sequence[int], num_computed_tokens: int) -> None:
        """Publish the pages that are now full, while the sequence still runs.

        Others can then start from them, and a follow-up turn finds the answer as well as the
        prompt.
        """
        num_full_pages = num_computed_tokens // self._page_size
        if self._num_chained_tokens is None or num_full_pages <= self._num_committed_pages:
            return
        if num_computed_tokens > self._num_chained_tokens:
            self._chain.extend(token_ids[self._num_chained_tokens : num_computed_tokens])
            self._num_chained_tokens = num_computed_tokens
        while self._num_committed_pages < num_full_pages:
            reservation, end = self._uncommitted[0]
            upto = min(end, num_full_pages)
            # Nothing to wait for: the step that wrote the pages has returned.
            reservation.commit(upto - self._num_committed_pages, after=None)
            self._num_committed_pages = upto
            if upto == end:
                self._uncommitted.popleft()

    def release(self) -> None:
        """Give the pages back. Idempotent."""
        if not self._released:
            self._released = True
            for reservation in self._reservations:
                reservation.release()
            self._lease.release()
