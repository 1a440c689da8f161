# SPDX-License-Identifier: Apache-2.0
"""Replays a trace through a store of a given size and policy, and counts hits; it stores no bytes.

The store is the real one, with pages of one token: a block of a trace is a page.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from kt_kvcache.chain import Chain
from kt_kvcache.eviction import EvictionPolicy
from kt_kvcache.page import CachedPage
from kt_kvcache.page_heap import PageHeap
from kt_kvcache.ram_tier import RamTier
from kt_kvcache.simulation.traces import Request

_NS_KEY = bytes(32)


@dataclass(frozen=True, slots=True)
class HashedRequest:
    """A request with its hashes, made once for all replays.

    Attributes:
        chain: of prompt and answer.
        num_prompt: pages of the prompt.
    """

    chain: Chain
    num_prompt: int


def hashed(trace: Sequence[Request]) -> list[HashedRequest]:
    """Hashes a trace."""
    requests = []
    for request in trace:
        chain = Chain(_NS_KEY, 1)
        chain.extend(request.prompt + request.answer)
        requests.append(HashedRequest(chain, len(request.prompt)))
    return requests


def working_set(trace: Sequence[HashedRequest]) -> int:
    """Returns the number of different pages in a trace."""
    return len({page_hash for request in trace for page_hash in page_hashes(request)})


def replay(
    trace: Sequence[HashedRequest],
    num_pages: int,
    policy: EvictionPolicy,
    begin: Callable[[int], None] = lambda i: None,
) -> int:
    """Serves the requests one after the other; calls `begin(i)` before the i-th.

    Returns:
        Pages of prompts that were found.
    """
    tier = RamTier(num_pages, policy)
    root = tier.root("replay", _NS_KEY)
    num_found = 0
    for i, request in enumerate(trace):
        begin(i)
        chain = request.chain
        lease, found, _ = tier.acquire(root, chain, request.num_prompt, with_tail=False)
        num_found += len(found)
        writer, page_ids = tier.reserve(chain.num_pages - len(found))
        tier.publish(writer, chain, len(found), page_ids)
        tier.release(writer)
        tier.release(lease)
    return num_found


class OptimalPolicy(EvictionPolicy):
    """Evicts the leaf that is asked for last (Belady), knowing the trace: what no policy beats.

    A page is asked for no later than those below it, so farthest-first among leaves is optimal
    for pages that must be reserved before they are written, as the store's are.
    """

    def __init__(self, trace: Sequence[HashedRequest]) -> None:
        """Notes when each page of the trace is asked for."""
        self._uses: dict[bytes, list[int]] = {}
        for i, request in enumerate(trace):
            for page_hash in page_hashes(request):
                self._uses.setdefault(page_hash, []).append(i)
        self._now = -1
        self._pages = PageHeap()

    def begin(self, i: int) -> None:
        """Says which request is served now."""
        self._now = i

    def admit(self, page: CachedPage) -> None:
        """The page entered the index, with pins."""

    def add(self, page: CachedPage) -> None:
        """The page became evictable."""
        uses = self._uses[page.hash]
        following = bisect_right(uses, self._now)
        self._pages.add(page, -uses[following] if following < len(uses) else -inf)

    def remove(self, page: CachedPage) -> None:
        """The page was pinned, got a child or was dropped."""
        self._pages.remove(page)

    def pop(self) -> CachedPage:
        """Chooses the next victim and forgets it."""
        return self._pages.pop()

    def __contains__(self, page: CachedPage) -> bool:
        return page in self._pages

    def __len__(self) -> int:
        return len(self._pages)


def page_hashes(request: HashedRequest) -> list[bytes]:
    """Returns the hashes of a request's pages."""
    chain = request.chain
    return [chain.page_hash(i) for i in range(chain.num_pages)]
