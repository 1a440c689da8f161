# SPDX-License-Identifier: Apache-2.0
"""A pinned prefix, to be read; made by ``Space.acquire``. It cannot write or publish."""

import weakref

from kt_kvcache.arena import Arena, PageView
from kt_kvcache.chain import Chain
from kt_kvcache.completion import Completion
from kt_kvcache.disk.holding import DiskHolding
from kt_kvcache.disk.tier import DiskTier
from kt_kvcache.errors import require_seconds
from kt_kvcache.handle import Handle
from kt_kvcache.load import Load, LoadResult
from kt_kvcache.page import CachedPage
from kt_kvcache.ram_tier import Holding, RamTier, Transfer
from kt_kvcache.tail import Tail, common_tokens
from kt_kvcache.window import Window


class Lease(Handle):
    """The cached pages of a chain's prefix; none of them can be evicted before ``release``.

    A lease without a hit has no pages and is used and released like any other.
    """

    _kind = "lease"
    _views_are_writable = False

    def __init__(
        self,
        tier: RamTier,
        arena: Arena | None,
        root: CachedPage,
        holding: Holding,
        page_ids: list[int],
        page_tokens: int,
        tail: tuple[CachedPage, int] | None = None,
        disk: DiskTier | None = None,
        on_disk: DiskHolding | None = None,
        window: Window | None = None,
    ) -> None:
        """Takes over `holding` and `on_disk`; callers use ``Space.acquire``."""
        super().__init__(tier, arena, root, holding, page_ids)
        self._page_tokens = page_tokens
        self._tail = tail
        self._disk = disk
        self._on_disk = on_disk
        self._window = window
        self._load: Completion[LoadResult] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV the pages hold: a multiple of the page size."""
        return self.num_pages * self._page_tokens

    @property
    def num_loadable_tokens(self) -> int:
        """Further tokens found on disk, that ``load`` would bring; 0 once it was called.

        More than a multiple of the page size if a tail was asked for and found there.
        """
        if self._on_disk is None:
            return 0
        return self._on_disk.num_full_pages * self._page_tokens + self._on_disk.tail_tokens

    def load(self, deadline: float | None = None) -> Completion[LoadResult]:
        """Brings the pages found on disk into memory, in the background; waits for nothing.

        When the result is there, ``page_ids`` and ``num_tokens`` have grown by what it says: use
        these, never what was hoped for. A page that cannot be read, or is not what was written,
        ends the load before it; nothing is raised. Releasing the lease detaches a running load.

        With ``WindowGroup``s, their bytes come only for the last tokens, the others' first: a load
        that ends early may bring nothing that can be used, and leaves less for the next one.

        Args:
            deadline: seconds after which the result must be there, whatever was read by then;
                infinity is none.

        Returns:
            Done at once if there is nothing to load; the same one if called again.

        Raises:
            StaleHandle: released, or the space or store is gone.
            ValueError: a deadline that is not seconds >= 0.
        """
        self._require_usable("load")
        if deadline is not None:
            deadline = require_seconds("load", "deadline", deadline)
        if self._load is None:
            if self._on_disk is None or self._disk is None:
                self._load = Completion()
                self._load.set_result(LoadResult(0, 0, None))
                return self._load
            found, self._on_disk = self._on_disk, None
            lease = weakref.ref(self)

            def grow(loaded: Transfer, tail_tokens: int) -> None:
                alive = lease()
                if alive is not None:
                    alive._grow(loaded, tail_tokens)

            self._load = Load(
                self._tier,
                self._disk,
                self._root,
                self._page_tokens,
                found,
                self._window,
                grow,
                deadline,
            )
        return self._load

    def release(self) -> None:
        """Gives up the pages; idempotent, and allowed after drop and close, and while loading.

        No kernel may still be using them. O(pages that nobody else holds).
        """
        if self._on_disk is not None and self._disk is not None:
            self._disk.release(self._on_disk)
            self._on_disk = None
        super().release()

    @property
    def tail(self) -> Tail | None:
        """The page that continues the prefix for part of a page: pinned, and not in ``page_ids``.

        None if none was asked for or found, or once it was released.

        Raises:
            StaleHandle: as for ``page_ids``.
        """
        self._require_usable("tail")
        return None if self._tail is None else Tail(self._tail[1], self._tail[0].page_id)

    def tail_view(self) -> PageView:
        """Returns the bytes of the tail's page, read-only; no page if there is no tail.

        Raises:
            StaleHandle, ValueError: as for ``view``.
        """
        tail = self.tail
        return self._view_of(() if tail is None else (tail.page_id,))

    def tail_tokens_for(self, chain: Chain, page: int) -> int:
        """Returns how many tokens of the tail are those of page `page` of `chain`; 0 without tail.

        Raises:
            ValueError: the page's parent is not the tail's.
        """
        if self._tail is None:
            return 0
        tail, num_tokens = self._tail
        assert tail.parent is not None  # a root is nobody's tail
        if chain.parent_hash(page) != tail.parent.hash:
            raise ValueError(
                f"[kvstore.tail] the chain must follow the leased prefix up to page {page}; "
                "got another one"
            )
        return min(num_tokens, common_tokens(tail.body, self._page_tokens, chain.fragment(page)))

    def release_tail(self) -> None:
        """Gives up the tail, so that its page can be evicted; the prefix stays. Idempotent."""
        if self._tail is not None:
            self._tier.release_tail(self._holding, self._tail[0])
            self._tail = None

    def _grow(self, loaded: Transfer, tail_tokens: int) -> None:
        """Takes in what was loaded, its last page as a tail if it has `tail_tokens`; in a thread
        of the store."""
        page_ids = self._tier.extend(self._holding, loaded)
        if page_ids is None:
            return
        if tail_tokens:
            page_ids.pop()
        self._page_ids = tuple(page_ids)
        # The one there was has lost its pin to what follows.
        self._tail = (loaded.pins[-1], tail_tokens) if tail_tokens else None

    def _leak(self) -> None:
        if self._on_disk is not None and self._disk is not None:
            self._disk.leak(self._on_disk)
        super()._leak()
