# SPDX-License-Identifier: Apache-2.0
"""Which unpinned leaf goes first when a slot is needed; it never touches the index itself."""

from collections import OrderedDict
from math import log2
from typing import Protocol

from kt_kvcache.page import CachedPage, Namespace
from kt_kvcache.page_heap import PageHeap

# Of the age at which pages are evicted, for each doubling of a page's branches. Chosen by
# tools/simulate_eviction.py: 1 wins more on documents and loses to LRU on agents, see ADR 0010.
_BRANCH_WEIGHT = 0.5
# Evictions over which that age is averaged: some tens of sessions, which come in runs of pages.
_AGE_WINDOW = 1024
# Evicted pages whose branches are remembered, 150 bytes each: more than there are system prompts
# and documents in use.
_MAX_REMEMBERED = 1 << 14


class EvictionPolicy(Protocol):
    """Holds exactly the pages that may be evicted now: cached, unpinned, without children."""

    def ask(self, namespace: Namespace, num_pages: int) -> None:
        """What is chosen from now on is for this namespace, which wants so many more pages."""
        return  # the same to most policies

    def admit(self, page: CachedPage) -> None:
        """The page entered the index, with pins."""

    def add(self, page: CachedPage) -> None:
        """The page became evictable."""

    def remove(self, page: CachedPage) -> None:
        """The page was pinned, got a child or was dropped."""

    def pop(self) -> CachedPage:
        """Chooses the next victim and forgets it."""

    def over_share(self) -> int:
        """How many victims were chosen because their namespace had more than its share."""
        return 0  # most policies know no shares

    def __contains__(self, page: CachedPage) -> bool: ...

    def __len__(self) -> int: ...


class LruPolicy(EvictionPolicy):
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


class BranchPolicy(EvictionPolicy):
    """LRU, but a page from which many sequences went their own way is given more time.

    Such a page ends a system prompt or a document. Once those who used it last are evicted below
    it, LRU would evict it right after them, as old as they are; yet others will ask for it. It
    counts as younger than it is by a part of the usual age at eviction for each doubling of its
    branches. A page with one branch, as in any conversation, gets nothing. Costs as for LRU.
    """

    def __init__(self) -> None:
        """Starts with no pages, as LRU: no page was evicted yet."""
        self._pages = PageHeap()
        self._now = 0
        self._age = 0.0  # mean of pages when they are evicted
        self._num_evicted = 0
        self._branches: OrderedDict[bytes, int] = OrderedDict()  # of evicted pages, by hash

    def admit(self, page: CachedPage) -> None:
        """The page entered the index, with pins and without branches: it gets back its old ones."""
        page.num_branches = self._branches.pop(page.hash, 0)

    def add(self, page: CachedPage) -> None:
        """The page became evictable."""
        self._now = max(self._now, page.last_used)
        bonus = _BRANCH_WEIGHT * log2(page.num_branches) if page.num_branches > 1 else 0.0
        self._pages.add(page, page.last_used + self._age * bonus)

    def remove(self, page: CachedPage) -> None:
        """The page was pinned, got a child or was dropped."""
        self._pages.remove(page)

    def pop(self) -> CachedPage:
        """Chooses the next victim and forgets it, but not how many branches it had."""
        page = self._pages.pop()
        self._num_evicted += 1
        age = self._now - page.last_used
        self._age += (age - self._age) / min(self._num_evicted, _AGE_WINDOW)
        if page.num_branches > 1:
            self._branches[page.hash] = page.num_branches
            if len(self._branches) > _MAX_REMEMBERED:
                self._branches.popitem(last=False)
        return page

    def __contains__(self, page: CachedPage) -> bool:
        return page in self._pages

    def __len__(self) -> int:
        return len(self._pages)
