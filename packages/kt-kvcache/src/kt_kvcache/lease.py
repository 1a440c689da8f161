# SPDX-License-Identifier: Apache-2.0
"""A pinned prefix, to be read; made by ``Space.acquire``. It cannot write or publish."""

from kt_kvcache.arena import Arena, PageView
from kt_kvcache.chain import Chain
from kt_kvcache.handle import Handle
from kt_kvcache.page import CachedPage
from kt_kvcache.ram_tier import Holding, RamTier
from kt_kvcache.tail import Tail, common_tokens


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
    ) -> None:
        """Takes over `holding`; callers use ``Space.acquire``."""
        super().__init__(tier, arena, root, holding, page_ids)
        self._page_tokens = page_tokens
        self._tail = tail

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV the pages hold: a multiple of the page size."""
        return self.num_pages * self._page_tokens

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
