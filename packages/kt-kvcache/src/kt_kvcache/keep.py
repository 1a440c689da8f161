# SPDX-License-Identifier: Apache-2.0
"""Eviction that spares pages somebody asked to keep for a while; what it spares them from is
another policy's choice.
"""

from collections.abc import Callable

from kt_kvcache.eviction import EvictionPolicy
from kt_kvcache.page import CachedPage, Namespace
from kt_kvcache.page_heap import PageHeap


class KeepingPolicy(EvictionPolicy):
    """Kept pages go only when no others are left, first the one whose time ends first.

    A page is kept while its ``kept_until`` lies ahead. Costs are those of the policy inside, plus
    O(log kept pages) for a kept one.
    """

    def __init__(self, inner: EvictionPolicy, clock: Callable[[], float]) -> None:
        """Puts pages nobody keeps into `inner`; `clock` gives seconds, as ``kept_until`` has."""
        self._inner = inner
        self._clock = clock
        self._kept = PageHeap()

    def ask(self, namespace: Namespace, num_pages: int) -> None:
        """What is chosen from now on is for this namespace, which wants so many more pages."""
        self._inner.ask(namespace, num_pages)

    def admit(self, page: CachedPage) -> None:
        """The page entered the index, with pins."""
        self._inner.admit(page)

    def add(self, page: CachedPage) -> None:
        """The page became evictable."""
        if page.kept_until > self._clock():
            self._kept.add(page, page.kept_until)
        else:
            self._inner.add(page)

    def remove(self, page: CachedPage) -> None:
        """The page was pinned, got a child or was dropped."""
        (self._kept if page in self._kept else self._inner).remove(page)

    def pop(self) -> CachedPage:
        """Chooses the next victim and forgets it."""
        if len(self._kept):
            now = self._clock()
            while len(self._kept) and self._kept.first().kept_until <= now:
                self._inner.add(self._kept.pop())
        return self._inner.pop() if len(self._inner) else self._kept.pop()

    def over_share(self) -> int:
        """How many victims were chosen because their namespace had more than its share."""
        return self._inner.over_share()

    def __contains__(self, page: CachedPage) -> bool:
        return page in self._kept or page in self._inner

    def __len__(self) -> int:
        return len(self._kept) + len(self._inner)
