# SPDX-License-Identifier: Apache-2.0
"""One sequence's pages: a stored prefix, then pages that it fills itself. Ids only, no tensors;
which sequence gets pages is the scheduler's business."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence

from kt_runtime.protocols import (
    PrefixChain,
    PrefixLease,
    PrefixLoad,
    PrefixReservation,
    PrefixSpace,
)

# A drive that hangs holds up the requests whose pages it has for so long; then they are computed.
# The longest contexts take less from any drive that works: 10 GB at 0.5 GB/s are 20 s.
_LOAD_TIMEOUT_S = 30.0


class SequencePages:
    """A leased prefix, then reserved pages (a `PageTable`); made by `PagePool.allocate`.

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
        self._page_ids = array("i")
        self._num_cached_tokens = 0
        self._num_committed_pages = 0
        self._reservations: list[PrefixReservation] = []
        # Those that still have pages to commit, the oldest first, with the place each ends at.
        self._uncommitted: deque[tuple[PrefixReservation, int]] = deque()
        # While loading: the load, the tokens to have pages for, and the pages held for those that
        # are not on their way.
        self._load: PrefixLoad | None = None
        self._num_wanted_tokens = 0
        self._held: PrefixReservation | None = None
        self._released = False

    @property
    def page_ids(self) -> Sequence[int]:
        """Pages in sequence order; none while loading."""
        return self._page_ids

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that need no computing."""
        return self._num_cached_tokens

    @property
    def is_loading(self) -> bool:
        """Whether a load was started and not settled yet."""
        return self._load is not None

    @property
    def has_loaded(self) -> bool:
        """Whether no load is running."""
        return self._load is None or self._load.done()

    def start(self, num_tokens: int, on_load_ended: Callable[[PrefixLoad], object]) -> bool:
        """Have pages for `num_tokens` tokens, and load what of the prefix is not in memory. False
        if too few are free: then all that is left is `release`.

        Args:
            num_tokens: at least those of the chain.
            on_load_ended: called once, from any thread, if this starts a load.
        """
        num_loadable = self._lease.num_loadable_tokens
        if not num_loadable:
            return self._take_prefix(num_tokens)
        first_page = len(self._lease.page_ids)
        # A last page that only begins as this sequence does is loaded beside the sequence's own.
        num_slots = -(-num_loadable // self._page_size)
        num_others = self._num_pages(num_tokens) - first_page - num_loadable // self._page_size
        # Only this thread takes pages: what is free now is free for the load, too.
        try:
            probed = self._space.reserve(self._chain, first_page, num_slots)
            try:
                held = self._space.reserve(self._chain, first_page, num_others)
            finally:
                probed.release()
        except self._out_of_pages:
            return False
        self._held = held
        self._num_wanted_tokens = num_tokens
        self._load = self._lease.load(_LOAD_TIMEOUT_S)
        self._load.add_done_callback(on_load_ended)
        return True

    def settle(self) -> bool:
        """Go on from what the load brought: the lease now has the pages that proved right, and
        nothing else of it is looked at. False if the rest finds too few pages."""
        assert self._held is not None  # loading
        self._held.release()
        self._held = self._load = None
        return self._take_prefix(self._num_wanted_tokens)

    def grow(self, num_tokens: int) -> bool:
        """Reserve what is missing of the pages of `num_tokens` tokens; False if too few are
        free."""
        first_page = len(self._page_ids)
        num_missing = self._num_pages(num_tokens) - first_page
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
        """Give the pages back; those that are being loaded come back when the load has ended.
        Idempotent."""
        if not self._released:
            self._released = True
            for reservation in self._reservations:
                reservation.release()
            if self._held is not None:
                self._held.release()
            self._lease.release()

    def _take_prefix(self, num_tokens: int) -> bool:
        """Begin with the lease's pages, then reserve the others; the first of those begins with
        what some other sequence has in common with this one."""
        self._page_ids = array("i", self._lease.page_ids)
        self._num_committed_pages = len(self._page_ids)
        self._num_cached_tokens = self._num_committed_pages * self._page_size
        if not self.grow(num_tokens):
            # The last page that is missing may be the one whose beginning would be copied.
            self._lease.release_tail()
            if not self.grow(num_tokens):
                return False
        if self._lease.tail is not None:
            self._num_cached_tokens += self._reservations[0].copy_tail(self._lease)
        return True

    def _num_pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_size)
