# SPDX-License-Identifier: Apache-2.0
"""A pinned prefix, to be read; made by ``Space.acquire``. It cannot write or publish."""

from kt_kvcache.arena import Arena
from kt_kvcache.handle import Handle
from kt_kvcache.page import CachedPage
from kt_kvcache.ram_tier import Holding, RamTier


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
    ) -> None:
        """Takes over `holding`; callers use ``Space.acquire``."""
        super().__init__(tier, arena, root, holding, page_ids)
        self._page_tokens = page_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV the pages hold: a multiple of the page size."""
        return self.num_pages * self._page_tokens
