# SPDX-License-Identifier: Apache-2.0
"""The trie of cached pages with its pins; it takes no lock and moves no bytes.

Invariants, all checked by integrity.py:
- a page is in the index only while its parent is, so a match from the root has no gaps;
- pins count upwards: a page has pins while anybody holds it or any page below it. Hence every
  page without pins can be evicted, leaves first, and `num_evictable` is exact;
- the policy holds exactly the attached pages with neither pins nor children.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from operator import attrgetter
from typing import Protocol

from kt_kvcache.chain import Chain
from kt_kvcache.events import EventStream, PageEvent, Removed, Stored, Tier
from kt_kvcache.eviction import EvictionPolicy
from kt_kvcache.native import HAS_CORE
from kt_kvcache.page import CachedPage, PageState
from kt_kvcache.tail import common_tokens

_body = attrgetter("body")


class Links(Protocol):
    """What ``publish`` asks of a chain."""

    def page_hash(self, page: int) -> bytes:
        """Hash of a full page."""

    def parent_hash(self, page: int) -> bytes:
        """Hash of the page before it, or the ns_key."""

    def page_body(self, page: int) -> bytes:
        """Token ids and extras of a full page."""


class PageIndex:
    """Hash -> page for all namespaces of a store; the caller holds the store's lock."""

    def __init__(
        self,
        policy: EvictionPolicy,
        free_slot: Callable[[int], None],
        tier: Tier = Tier.MEMORY,
    ) -> None:
        """Starts empty; `free_slot` receives the page id of each page that goes."""
        self.policy = policy
        self.tier = tier
        self.num_evictable = 0
        self.num_mismatched = 0
        # A child enters after its parent and leaves before it: dict order is topological.
        self.by_hash: dict[bytes, CachedPage] = {}
        self.detached: set[CachedPage] = set()
        self._free_slot = free_slot
        self._clock = 0
        self._streams: list[EventStream] = []

    def root(self, ns_key: bytes) -> CachedPage:
        """Returns the root of a namespace, made on first use. O(1)."""
        root = self.by_hash.get(ns_key)
        if root is None:
            root = self.by_hash[ns_key] = CachedPage(ns_key, None, b"", -1)
        return root

    def match(self, root: CachedPage, chain: Chain, num_pages: int) -> tuple[CachedPage, list[int]]:
        """Finds the longest cached prefix of at most `num_pages` pages; O(matched pages).

        Returns:
            Its last page (`root` if nothing matched) and its page ids.
        """
        page, page_ids = root, []
        by_hash = self.by_hash.get
        for page_hash, body in chain.links(num_pages):
            child = by_hash(page_hash)
            if child is None:
                break
            if child.parent is not page or child.body != body:
                self.num_mismatched += 1
                break
            page_ids.append(child.page_id)
            page = child
        return page, page_ids

    def match_tail(
        self, page: CachedPage, chain: Chain, first_page: int, max_tokens: int
    ) -> tuple[CachedPage, int] | None:
        """Finds the child of `page` that agrees longest with the chain; O(log children).

        Only the two neighbours of the chain's own tokens, in the order of the bodies, are looked
        at: without extras one of them is the best; with extras there may be a better one.

        Args:
            page: the chain's last matched page, or the root.
            chain: whose page `first_page` comes next.
            first_page: pages matched.
            max_tokens: most tokens of the child to use.

        Returns:
            The child and the number of its leading tokens, at least 1; None if there is none.
        """
        if not page.children or max_tokens <= 0:
            return None
        fragment = chain.fragment(first_page)
        place = bisect_left(page.children, b"".join(fragment), key=_body)
        best, num_tokens = None, 0
        for child in page.children[max(0, place - 1) : place + 1]:
            num_common = common_tokens(child.body, chain.page_tokens, fragment)
            if num_common > num_tokens:
                best, num_tokens = child, num_common
        return None if best is None else (best, min(num_tokens, max_tokens))

    def publish(self, chain: Links, i: int, page_id: int) -> tuple[CachedPage | None, PageState]:
        """Enters page `i` of the chain as `page_id`; O(1) plus pages newly pinned.

        Returns:
            The page now cached under this hash, with a pin for the caller, and PUBLISHED or
            PRESENT; or None and UNLINKED, and nothing has changed.
        """
        parent = self.by_hash.get(chain.parent_hash(i))
        if parent is None:
            return None, PageState.UNLINKED
        page_hash, body = chain.page_hash(i), chain.page_body(i)
        present = self.by_hash.get(page_hash)
        if present is not None:
            if present.parent is not parent or present.body != body:
                self.num_mismatched += 1
                return None, PageState.UNLINKED
            self.pin(present)
            return present, PageState.PRESENT
        self.pin(parent)  # as the parent of a pinned page
        page = self.by_hash[page_hash] = CachedPage(page_hash, parent, body, page_id)
        insort(parent.children, page, key=_body)
        parent.num_branches += 1
        page.namespace.num_pages += 1
        self.policy.admit(page)
        if self._streams:
            self._push(Stored(page_hash, parent.hash, self.tier))
        return page, PageState.PUBLISHED

    def pin(self, page: CachedPage) -> None:
        """Protects the page and all above it; O(pages that had no pins before)."""
        above: CachedPage | None = page
        while above is not None:
            above.pins += 1
            if above.pins > 1:
                return
            self.num_evictable -= 1
            if not above.children:
                self.policy.remove(above)
            above = above.parent

    @property
    def now(self) -> int:
        """Time of the last unpin."""
        return self._clock

    def use_at(self, time: int) -> None:
        """Sets the clock, which goes up by 1 with each unpin, to a later time."""
        self._clock = max(self._clock, time - 1)

    def unpin(self, page: CachedPage, used: int | None = None) -> None:
        """Takes back one pin; O(pages left without pins). Dropped ones among them go free.

        Args:
            page: the page that was pinned.
            used: when it was used, if holding it was no use; None: now.
        """
        if used is None:
            self._clock += 1
            used = self._clock
        above: CachedPage | None = page
        while above is not None:
            above.pins -= 1
            if above.pins:
                return
            if above.attached:
                above.last_used = max(above.last_used, used)
                self.num_evictable += 1
                if not above.children:
                    self.policy.add(above)
            else:
                self.detached.remove(above)
                self._free_slot(above.page_id)
            above = above.parent

    def keep(self, page: CachedPage, until: float) -> None:
        """Spares a page and all above it from eviction up to this time; O(pages above)."""
        is_leaf = page in self.policy
        if is_leaf:
            self.policy.remove(page)
        above = page
        while above.parent is not None:
            above.kept_until = until
            above = above.parent
        if is_leaf:
            self.policy.add(page)

    def subscribe(self, stream: EventStream) -> None:
        """Tells a stream of each page that is here, and from now on of what changes; O(pages)."""
        stream.push(
            Stored(page.hash, page.parent.hash, self.tier)
            for page in self.by_hash.values()
            if page.parent is not None
        )
        self._streams.append(stream)

    def evict(self) -> CachedPage:
        """Frees the slot of the policy's victim; O(log n). The caller checked `num_evictable`."""
        page = self.policy.pop()
        self._unlink(page)
        self.num_evictable -= 1
        self._free_slot(page.page_id)
        return page

    def drop(self, top: CachedPage) -> int:
        """Takes `top` and all below it out of the index; O(these pages).

        Pages with pins keep their slots, unseen, until their last pin goes.

        Returns:
            Pages taken out; a root is not counted.
        """
        doomed = self.subtree(top)
        for page in reversed(doomed):
            if page.parent is None:
                del self.by_hash[page.hash]
                page.attached = False
            elif page.pins:
                self._unlink(page)
                self.detached.add(page)
            else:
                self.policy.remove(page)
                self._unlink(page)
                self.num_evictable -= 1
                self._free_slot(page.page_id)
        return len(doomed) - (top.parent is None)

    def subtree(self, top: CachedPage) -> list[CachedPage]:
        """Returns `top` and all below it, parents before their children; O(these pages)."""
        pages = [top]
        for page in pages:
            pages += page.children
        return pages

    def _unlink(self, page: CachedPage) -> None:
        """Removes a page without children; its parent may become the next evictable leaf."""
        del self.by_hash[page.hash]
        page.attached = False
        page.namespace.num_pages -= 1
        parent = page.parent
        assert parent is not None  # roots leave through drop
        if self._streams:
            self._push(Removed(page.hash, parent.hash, self.tier))
        del parent.children[bisect_left(parent.children, page.body, key=_body)]
        if not parent.children and not parent.pins:
            self.policy.add(parent)

    def _push(self, event: PageEvent) -> None:
        self._streams = [stream for stream in self._streams if not stream.closed]
        for stream in self._streams:
            stream.push((event,))


def usable(last: CachedPage, num_pages: int, window_pages: int) -> tuple[CachedPage, int]:
    """Finds the longest part of a match that can be used: whose last pages are all whole.

    Args:
        last: last page of the match, or the root.
        num_pages: pages of the match.
        window_pages: how many pages before its end a prefix needs whole; 0: none.

    Returns:
        The last page of that part, or the root, and its number of pages. O(pages looked at), which
        are `window_pages` if there is no head among them.
    """
    page, left, num_whole = last, num_pages, 0
    while page.parent is not None and num_whole < window_pages:
        num_whole = num_whole + 1 if page.whole else 0
        is_head, page, left = not page.whole, page.parent, left - 1
        if is_head:
            last, num_pages = page, left
    return last, num_pages


def index_type() -> type[PageIndex]:
    """Returns the core's index where there is a core."""
    if not HAS_CORE:
        return PageIndex
    from kt_kvcache.native_index import NativePageIndex

    return NativePageIndex
