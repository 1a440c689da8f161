# SPDX-License-Identifier: Apache-2.0
"""Writable pages at the end of a chain, and their publication; made by ``Space.reserve``."""

from typing import Protocol

from kt_kvcache.arena import Arena
from kt_kvcache.chain import Chain
from kt_kvcache.disk.tier import DiskTier
from kt_kvcache.errors import require_int, require_type
from kt_kvcache.handle import Handle
from kt_kvcache.lease import Lease
from kt_kvcache.page import CachedPage, PageState
from kt_kvcache.ram_tier import Holding, RamTier
from kt_kvcache.window import Window, copy_rest


class Event(Protocol):
    """Something on a device's timeline, such as ``torch.cuda.Event``."""

    def synchronize(self) -> object:
        """Returns once it has happened; raises if the work before it failed."""


class Writer(Handle):
    """Pages at positions [first_page, first_page + n) of a chain, private until committed.

    ``view`` is writable. Committed pages may be read by others: write them no more.
    """

    _kind = "writer"
    _views_are_writable = True

    def __init__(
        self,
        tier: RamTier,
        arena: Arena | None,
        root: CachedPage,
        holding: Holding,
        page_ids: list[int],
        chain: Chain,
        first_page: int,
        disk: DiskTier | None = None,
        window: Window | None = None,
    ) -> None:
        """Takes over `holding`; callers use ``Space.reserve``."""
        super().__init__(tier, arena, root, holding, page_ids)
        self._chain = chain
        self._first_page = first_page
        self._disk = disk
        self._window = window
        self._states: list[PageState] = []

    @property
    def first_page(self) -> int:
        """Position of the first page in the chain."""
        return self._first_page

    @property
    def num_committed(self) -> int:
        """Pages committed so far, from the first on."""
        return len(self._states)

    @property
    def states(self) -> tuple[PageState, ...]:
        """State of each page."""
        num_left = self.num_pages - self.num_committed
        return (*self._states, *[PageState.RESERVED] * num_left)

    def copy_tail(self, lease: Lease) -> int:
        """Copies the tail of a lease into this writer's first page, and releases the tail.

        The page must stand right after the leased prefix. Its remaining bytes are another
        sequence's: write them before the page is committed or read. The lease may be of another
        store or space, if its arena's pages have the same size and its chains the same hashes.

        Returns:
            Leading tokens of this page whose KV is now there; 0 if the lease has no tail.

        Raises:
            ValueError: no arena, another prefix, or the first page is committed already.
            StaleHandle: either is released, or its space or store is gone.
        """
        self._require_usable("copy_tail")
        if self._states:
            raise ValueError(
                "[kvstore.copy_tail] the first page must not be committed; "
                f"got {self.num_committed} committed pages"
            )
        require_type("copy_tail", "lease", lease, Lease)
        if lease.tail is None:
            return 0
        num_tokens = lease.tail_tokens_for(self._chain, self._first_page)
        if num_tokens:
            lease.tail_view().copy_to(self._view_of(self._page_ids[:1]))
        lease.release_tail()
        return num_tokens

    def commit(self, n: int, after: Event | None) -> tuple[PageState, ...]:
        """Publishes the next `n` pages under the hashes of the chain; O(n).

        With a disk they are then written there in the background, with those above that are not
        there yet; a page that cannot be is counted (``stats().disk``).

        A page that cannot be shared (PRESENT, UNLINKED) stays this writer's own and readable
        through its page id until ``release``.

        Args:
            n: pages, counted from the first one not committed yet; the chain must cover them.
            after: when their bytes are written. None states that they are written now; an
                event is waited for, before anything is published.

        Returns:
            State of each of these `n` pages.

        Raises:
            ValueError: more pages than are left or than the chain covers.
            StaleHandle: released, or the space or store is gone.
            Exception: whatever ``after.synchronize`` raises; nothing was published then.
        """
        self._require_usable("commit")
        done = self.num_committed
        require_int("commit", "n", n, 0, self.num_pages - done)
        first_page, last_page = self._first_page + done, self._first_page + done + n
        if n and last_page > self._chain.num_pages:
            raise ValueError(
                f"[kvstore.commit] the chain must cover {last_page} full pages; "
                f"got {self._chain.num_pages} ({self._chain.num_tokens} tokens)"
            )
        if not hasattr(after, "synchronize") and after is not None:
            raise ValueError(
                "[kvstore.commit] after must be an event with synchronize(), or None; got "
                f"{type(after).__name__}"
            )
        if after is not None:
            after.synchronize()
        page_ids = self._page_ids[done : done + n]
        states = self._tier.publish(self._holding, self._chain, first_page, page_ids)
        self._states += states
        if self._window is not None and self._arena is not None:
            heads = self._tier.claim_heads(self._chain, first_page, page_ids, states)
            copy_rest(self._arena, self._window, heads)
            self._tier.completed(heads)
        num_published = states.count(PageState.PUBLISHED)
        if self._disk is not None and num_published:
            last = self._tier.last_published(self._holding)
            if last is not None:
                self._disk.offer(last, num_published)
        return tuple(states)

    def abort(self) -> None:
        """Gives up uncommitted work. What is published is whole, so this is ``release``."""
        self.release()
