# SPDX-License-Identifier: Apache-2.0
"""Which unpinned leaf goes first when a slot is needed; it never touches the index itself."""

from typing import Protocol

from kt_kvcache.page import CachedPage
from kt_kvcache.page_heap import PageHeap


class EvictionPolicy(Protocol):
    """Holds exactly the pages that may be evicted now: cached, unpinned, without children."""

    def admit(self, page: CachedPage) -> None:
        """The page entered the index, with pins."""

    def add(self, page: CachedPage) -> None:
        """The page became evictable."""

    def remove(self, page: CachedPage) -> None:
        """The page was pinned, got a child or was dropped."""

    def pop(self) -> CachedPage:
        """Chooses the next victim and forgets it."""

    def __contains__(self, page: CachedPage) -> bool: ...

    def __len__(self) -> int: ...


class LruPolicy:
    """Least recently released first; add and pop O(log n), remove O(1) amortised."""

    def __init__(self) -> None:
        """Starts with no pages."""
        self._pages = PageHeap()

    def admit(self, page: CachedPage) -> None:
        """The page entered the index, with pins."""

    def add(self, page: CachedPage) -> None:
        """The page became evictable."""
        self._pages.add(page, page.last_used)

    def remove(self, page: CachedPage) -> None:
        """The page was pinned, got a child or was dropped."""
        self._pages.remove(page)

    def pop(self) -> CachedPage:
        """Returns the page released longest ago."""
        return self._pages.pop()

    def __contains__(self, page: CachedPage) -> bool:
        return page in self._pages

    def __len__(self) -> int:
        return len(self._pages)
