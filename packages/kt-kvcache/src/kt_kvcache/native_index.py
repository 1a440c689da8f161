# SPDX-License-Identifier: Apache-2.0
"""The index whose walks over many pages run in the compiled core; import it only where
native.HAS_CORE. What they mean is defined by its base, index.py.
"""

from kt_kvcache import _core
from kt_kvcache.chain import Chain
from kt_kvcache.index import PageIndex
from kt_kvcache.page import CachedPage

_pages = _core.CachedPages(CachedPage)


class NativePageIndex(PageIndex):
    """A PageIndex; the same, quicker for long prefixes."""

    def match(self, root: CachedPage, chain: Chain, num_pages: int) -> tuple[CachedPage, list[int]]:
        """See ``PageIndex.match``. Pages are found by their bodies among their parent's children,
        not by their hashes: those agree unless hashes collide.
        """
        tokens, extras = chain.contents()
        num_pages = min(num_pages, chain.num_pages)
        page, page_ids = _pages.match(root, tokens, chain.page_tokens, extras, num_pages)
        if len(page_ids) < num_pages and chain.page_hash(len(page_ids)) in self.by_hash:
            self.num_mismatched += 1
        return page, page_ids

    def pin(self, page: CachedPage) -> None:
        """See ``PageIndex.pin``."""
        num_pinned = _pages.pin(page)
        if num_pinned:
            self.num_evictable -= num_pinned
            if not page.children:  # those above have at least the page below
                self.policy.remove(page)

    def unpin(self, page: CachedPage, used: int | None = None) -> None:
        """See ``PageIndex.unpin``."""
        if used is not None or not page.attached:
            super().unpin(page, used)
            return
        self._clock += 1
        num_unpinned = _pages.unpin(page, self._clock)
        self.num_evictable += num_unpinned
        if num_unpinned and not page.children:
            self.policy.add(page)
