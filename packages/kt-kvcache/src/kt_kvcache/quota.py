# SPDX-License-Identifier: Apache-2.0
"""Eviction that takes first from namespaces that have more than their share; what it takes where
none has is another policy's choice.
"""

from kt_kvcache.eviction import EvictionPolicy
from kt_kvcache.page import CachedPage, Namespace
from kt_kvcache.page_heap import PageHeap


class QuotaPolicy(EvictionPolicy):
    """As long as a namespace has more pages than `most`, or would have with what it asks for, only
    the largest of these loses pages.

    So nobody loses what is within his share to somebody beyond it, and what nobody needs is
    anybody's to use. Costs are those of the policy inside, plus O(log pages) to add and to pop.
    """

    def __init__(self, inner: EvictionPolicy, most: int) -> None:
        """Chooses by `inner` where no namespace has more than `most` pages."""
        self._inner = inner
        self._most = most
        self._pages: dict[Namespace, PageHeap] = {}  # those that can be evicted, by last use
        self._beyond: set[Namespace] = set()  # all that have too much, and some that had
        self._asking: Namespace | None = None
        self._num_asked = 0
        self._num_over_share = 0

    def ask(self, namespace: Namespace, num_pages: int) -> None:
        """What is chosen from now on is for this namespace, which wants so many more pages."""
        self._asking, self._num_asked = namespace, num_pages
        self._beyond.add(namespace)

    def admit(self, page: CachedPage) -> None:
        """The page entered the index, with pins."""
        self._inner.admit(page)
        if page.namespace.num_pages > self._most:
            self._beyond.add(page.namespace)

    def add(self, page: CachedPage) -> None:
        """The page became evictable."""
        self._inner.add(page)
        self._pages.setdefault(page.namespace, PageHeap()).add(page, page.last_used)

    def remove(self, page: CachedPage) -> None:
        """The page was pinned, got a child or was dropped."""
        self._inner.remove(page)
        self._forget(page)

    def pop(self) -> CachedPage:
        """Chooses the next victim and forgets it."""
        self._beyond = {space for space in self._beyond if self._size(space) > self._most}
        evictable = [space for space in self._beyond if space in self._pages]
        if evictable:
            page = self._pages[max(evictable, key=self._size)].first()
            self._inner.remove(page)
            self._num_over_share += 1
        else:
            page = self._inner.pop()
        self._forget(page)
        return page

    def over_share(self) -> int:
        """How many victims were chosen because their namespace had more than its share."""
        return self._num_over_share

    def _size(self, space: Namespace) -> int:
        return space.num_pages + (self._num_asked if space is self._asking else 0)

    def _forget(self, page: CachedPage) -> None:
        pages = self._pages[page.namespace]
        pages.remove(page)
        if not len(pages):
            del self._pages[page.namespace]

    def __contains__(self, page: CachedPage) -> bool:
        return page in self._inner

    def __len__(self) -> int:
        return len(self._inner)
