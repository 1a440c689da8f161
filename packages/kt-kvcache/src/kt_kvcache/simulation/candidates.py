# SPDX-License-Identifier: Apache-2.0
"""Policies known from caches without a tree, to compare with; no store uses them."""

from collections import Counter, OrderedDict
from collections.abc import Sequence

from kt_kvcache.eviction import EvictionPolicy
from kt_kvcache.page import CachedPage
from kt_kvcache.page_heap import PageHeap
from kt_kvcache.simulation.replay import HashedRequest, page_hashes

# Of all pages, as S3-FIFO has it for its small queue.
_SMALL_SHARE = 0.1


class FrequencyPolicy(EvictionPolicy):
    """Greedy-dual size-frequency: the fewest uses first, plus what the last victim had.

    That sum ages: a page that was used often long ago goes in the end. All pages cost and weigh
    the same here. Uses are those of the whole trace up to now, more than a store would remember.
    """

    def __init__(self, trace: Sequence[HashedRequest]) -> None:
        """Will count the uses of this trace's pages."""
        self._trace = trace
        self._uses: Counter[bytes] = Counter()
        self._pages = PageHeap()
        self._keys: dict[CachedPage, float] = {}
        self._floor = 0.0

    def begin(self, i: int) -> None:
        """Says which request is served now."""
        self._uses.update(page_hashes(self._trace[i]))

    def admit(self, page: CachedPage) -> None:
        """The page entered the index, with pins."""

    def add(self, page: CachedPage) -> None:
        """The page became evictable."""
        self._keys[page] = self._floor + self._uses[page.hash]
        self._pages.add(page, self._keys[page])

    def remove(self, page: CachedPage) -> None:
        """The page was pinned, got a child or was dropped."""
        self._pages.remove(page)
        del self._keys[page]

    def pop(self) -> CachedPage:
        """Chooses the next victim and forgets it."""
        page = self._pages.pop()
        self._floor = self._keys.pop(page)
        return page

    def __contains__(self, page: CachedPage) -> bool:
        return page in self._pages

    def __len__(self) -> int:
        return len(self._pages)


class ProbationPolicy(EvictionPolicy):
    """S3-FIFO's idea: pages used once go first while they are many; a ghost list lets them in.

    Both queues are in order of use here, since a tree hands over its leaves out of order.
    """

    def __init__(self, num_pages: int) -> None:
        """Starts empty, for a store of `num_pages` pages."""
        self._num_pages = num_pages
        self._small, self._main = PageHeap(), PageHeap()
        self._ghosts: OrderedDict[bytes, None] = OrderedDict()
        self._proven: set[CachedPage] = set()

    def admit(self, page: CachedPage) -> None:
        """The page entered the index, with pins."""
        if page.hash in self._ghosts:
            del self._ghosts[page.hash]
            self._proven.add(page)

    def add(self, page: CachedPage) -> None:
        """The page became evictable."""
        # A page with branches was used by each of them.
        is_proven = page in self._proven or page.num_branches > 0
        (self._main if is_proven else self._small).add(page, page.last_used)

    def remove(self, page: CachedPage) -> None:
        """The page was pinned, got a child or was dropped."""
        self._proven.add(page)
        (self._small if page in self._small else self._main).remove(page)

    def pop(self) -> CachedPage:
        """Chooses the next victim and forgets it."""
        num_small = len(self._small)
        is_small = num_small and (num_small > _SMALL_SHARE * self._num_pages or not len(self._main))
        page = (self._small if is_small else self._main).pop()
        self._proven.discard(page)
        self._ghosts[page.hash] = None
        if len(self._ghosts) > self._num_pages:
            self._ghosts.popitem(last=False)
        return page

    def __contains__(self, page: CachedPage) -> bool:
        return page in self._small or page in self._main

    def __len__(self) -> int:
        return len(self._small) + len(self._main)
