# SPDX-License-Identifier: Apache-2.0
"""The pages kept in memory: slots, index and holdings behind the store's one lock.

Every public method is one atomic step. None waits, does I/O or touches page bytes.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock
from time import monotonic, perf_counter_ns

from kt_kvcache.ages import Ages, now_ns
from kt_kvcache.chain import Chain
from kt_kvcache.errors import OutOfPages, StaleHandle
from kt_kvcache.events import EventStream
from kt_kvcache.eviction import EvictionPolicy
from kt_kvcache.index import Links, index_type, usable
from kt_kvcache.integrity import check_pages
from kt_kvcache.keep import KeepingPolicy
from kt_kvcache.page import CachedPage, PageState
from kt_kvcache.recent import Evicted
from kt_kvcache.slots import Slots
from kt_kvcache.stats import Counters, Stats


class Holding:
    """What one lease or writer keeps from being freed; equal only to itself.

    Attributes:
        pins: pages in the index pinned for it; a pin covers all pages above.
        private: page ids that only its writer may use; None for a lease.
        since: when it was made, in seconds of the store's clock.
    """

    __slots__ = ("pins", "private", "since")

    def __init__(self, pins: list[CachedPage], private: set[int] | None, since: float) -> None:
        """Records what the tier has just pinned or taken."""
        self.pins = pins
        self.private = private
        self.since = since


class Transfer(Holding):
    """What the store itself keeps while bytes move to or from disk.

    Attributes:
        used: when its page was used last, if to have held it is no use; else None.
    """

    __slots__ = ("used",)

    def __init__(self, pins: list[CachedPage], since: float, used: int | None = None) -> None:
        """Records what the tier has just pinned."""
        super().__init__(pins, set(), since)
        self.used = used


class RamTier:
    """All page slots of a store; thread-safe."""

    def __init__(
        self,
        num_pages: int,
        policy: EvictionPolicy,
        clock: Callable[[], float] = monotonic,
        *,
        max_age_s: float = 0.0,
    ) -> None:
        """Starts with `num_pages` free slots.

        Args:
            num_pages: slots.
            policy: which page goes first.
            clock: gives seconds from any start.
            max_age_s: see ``StoreConfig``.
        """
        self._lock = Lock()
        self._clock = clock
        self._slots = Slots(num_pages)
        keeping = KeepingPolicy(policy, clock)
        self._index = index_type()(keeping, lambda page_id: self._slots.give((page_id,)))
        self._holdings: set[Holding] = set()
        # Filled by finalizers, which may run anywhere, even in a thread inside the lock: hence
        # not released there but at the next call that counts pages. deque.append is atomic.
        self._leaked: deque[Holding] = deque()
        self._completing: set[CachedPage] = set()  # heads that somebody is making whole
        self._counters = Counters()
        self._ages = Ages(max_age_s)
        self._evicted = Evicted()
        self._evicted_used = 0  # when the last one of them was used
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def root(self, op: str, ns_key: bytes) -> CachedPage:
        """Returns the root of a namespace, made on first use. O(1)."""
        with self._lock:
            self._require_open(op)
            return self._index.root(ns_key)

    def probe(self, root: CachedPage, chain: Chain, window_pages: int = 0) -> int:
        """Returns the number of leading pages of `chain` that are usable; O(pages cached)."""
        with self._lock:
            self._require_open("probe")
            self._expire()
            last, page_ids = self._index.match(root, chain, chain.num_pages)
            return usable(last, len(page_ids), window_pages)[1]

    def acquire(
        self,
        root: CachedPage,
        chain: Chain,
        max_tokens: int,
        *,
        with_tail: bool,
        window_pages: int = 0,
    ) -> tuple[Holding, list[int], tuple[CachedPage, int] | None]:
        """Matches pages of at most `max_tokens` tokens and pins the match; O(matched pages).

        Args:
            root, chain: where to look, and for what.
            max_tokens: upper limit of the match.
            with_tail: also look for a tail.
            window_pages: see ``usable``.

        Returns:
            The holding; the page ids of the match; with the same pin and if asked for, the page
            below the match that agrees longest with the chain, and with how many tokens.
        """
        page_tokens = chain.page_tokens
        num_pages = min(chain.num_pages, max_tokens // page_tokens)
        start = perf_counter_ns()
        with self._lock:
            self._require_open("acquire")
            self._expire()
            last, page_ids = self._index.match(root, chain, num_pages)
            num_matched, tail = len(page_ids), None
            if with_tail:
                num_left = max_tokens - num_matched * page_tokens
                tail = self._index.match_tail(last, chain, num_matched, num_left)
                if tail and usable(tail[0], num_matched + 1, window_pages)[1] <= num_matched:
                    tail = None
            if tail is None:
                last, num_matched = usable(last, num_matched, window_pages)
                del page_ids[num_matched:]
            if tail is not None:
                last = tail[0]
                self._counters.tail_tokens += tail[1]
            self._index.pin(last)
            holding = Holding([last], None, self._clock())
            self._holdings.add(holding)
            counters = self._counters
            counters.hit_pages += num_matched
            counters.hit_tokens += num_matched * page_tokens
            counters.missed_pages += num_pages - num_matched
            counters.acquires += 1
            counters.acquire_ns += perf_counter_ns() - start
            return holding, page_ids, tail

    def release_tail(self, holding: Holding, tail: CachedPage) -> None:
        """Moves the pin of a lease from its tail to the page above; O(1)."""
        with self._lock:
            if holding not in self._holdings or tail not in holding.pins:
                return
            above = tail.parent
            assert above is not None  # a root is nobody's tail
            self._index.pin(above)
            self._index.unpin(tail)
            holding.pins[holding.pins.index(tail)] = above

    def reserve(self, n: int, asker: CachedPage | None = None) -> tuple[Holding, list[int]]:
        """Takes `n` slots, evicting where needed; O(n + evictions x log pages), all or nothing.

        Args:
            n: how many.
            asker: root of the namespace that wants them; None: of no one.
        """
        with self._lock:
            self._require_open("reserve")
            self._expire()
            self._recover_leaked()
            num_free, num_evictable = self._slots.num_free, self._index.num_evictable
            if num_free + num_evictable < n:
                raise OutOfPages(n, num_free, num_evictable, self._slots.num_pages)
            self._evict(n - num_free, asker, n)
            page_ids = self._slots.take(n)
            holding = Holding([], set(page_ids), self._clock())
            self._holdings.add(holding)
            return holding, page_ids

    def publish(
        self,
        holding: Holding,
        chain: Links,
        first_page: int,
        page_ids: Sequence[int],
        born: Sequence[int] = (),
        *,
        whole: bool = True,
    ) -> list[PageState]:
        """Publishes a writer's slots as pages [first_page, ...) of the chain; O(pages).

        Args:
            holding: of the writer.
            chain, first_page: what the pages are.
            page_ids: their slots.
            born: when they were computed, if that is not now.
            whole: whether all their bytes are there; else they are heads.
        """
        states = []
        with self._lock:
            self._require_open("commit")
            now = self._clock()
            private = holding.private
            if private is None or holding not in self._holdings:
                raise StaleHandle("[kvstore.commit] the writer must be open; got a released one")
            for i, page_id in enumerate(page_ids, first_page):
                page, state = self._index.publish(chain, i, page_id)
                if page is not None:
                    self._keep(holding, page)
                if page is not None and state is PageState.PUBLISHED:
                    page.born = born[i - first_page] if born else now_ns()
                    page.whole = whole
                    self._ages.add(page)
                    private.remove(page_id)
                    self._counters.reasked_pages += self._evicted.returned(chain.page_hash(i), now)
                states.append(state)
            self._counters.published_pages += states.count(PageState.PUBLISHED)
            self._counters.present_pages += states.count(PageState.PRESENT)
            self._counters.unlinked_pages += states.count(PageState.UNLINKED)
        return states

    def claim_heads(
        self, chain: Links, first_page: int, page_ids: Sequence[int], states: Sequence[PageState]
    ) -> list[tuple[CachedPage, int]]:
        """Finds the heads that pages just published, whole, met in the index; O(pages).

        Nobody relies on what a head lacks, so whoever got it here may write it; nobody else gets
        it before ``completed``, and it stays pinned by what it was published for.

        Returns:
            Each with the page id of its whole twin.
        """
        claimed = []
        with self._lock:
            for i, (page_id, state) in enumerate(zip(page_ids, states, strict=True), first_page):
                if state is PageState.PRESENT:
                    page = self._index.by_hash.get(chain.page_hash(i))
                    if page is not None and not page.whole and page not in self._completing:
                        self._completing.add(page)
                        claimed.append((page, page_id))
        return claimed

    def completed(self, claimed: Sequence[tuple[CachedPage, int]]) -> None:
        """Says that heads of ``claim_heads`` are whole now."""
        with self._lock:
            for page, _ in claimed:
                page.whole = True
                self._completing.remove(page)

    def transfer(self) -> Transfer:
        """Returns what a load will hold: nothing yet."""
        with self._lock:
            self._require_open("load")
            transfer = Transfer([], self._clock())
            self._holdings.add(transfer)
            return transfer

    def pin_some(self, transfer: Transfer, links: Links, n: int, first_whole: int) -> int:
        """Has a load hold those of its first `n` pages that are here by now; O(these pages).

        From page `first_whole` on, heads do not count.
        """
        with self._lock:
            for i in range(n):
                page = self._index.by_hash.get(links.page_hash(i))
                if page is None or page.body != links.page_body(i):
                    return i
                if i >= first_whole and not page.whole:
                    return i
                self._index.pin(page)
                self._keep(transfer, page)
            return n

    def page(self, page_hash: bytes) -> CachedPage | None:
        """Returns a page that is in memory now. O(1)."""
        with self._lock:
            return self._index.by_hash.get(page_hash)

    def evicts_soon(self) -> int | None:
        """Returns the time of use (``CachedPage.last_used``) up to which pages may be evicted soon:
        halfway from the last victim's to now. None while a quarter of all slots is free. O(1).
        """
        with self._lock:
            if 4 * self._slots.num_free > self._slots.num_pages:
                return None
            return (self._evicted_used + self._index.now) // 2

    def has(self, page_hash: bytes) -> bool:
        """Whether a page is in memory now, and whole."""
        with self._lock:
            page = self._index.by_hash.get(page_hash)
            return page is not None and page.whole

    def trim(self, transfer: Transfer, num_pages: int, window_pages: int) -> int:
        """Has a load, of `num_pages` pages, hold what of it is usable; returns how many pages."""
        with self._lock:
            last = transfer.pins[-1]
            end, num_usable = usable(last, num_pages, window_pages)
            if num_usable > 0 and end is not last:
                self._index.pin(end)
                self._index.unpin(last)
                transfer.pins[-1] = end
            return max(0, num_usable)

    def reserve_some(self, transfer: Transfer, n: int, asker: CachedPage) -> list[int]:
        """Takes up to `n` slots for pages to be loaded, as many as are free or evictable."""
        with self._lock:
            self._require_open("load")
            self._recover_leaked()
            n = min(n, self._slots.num_free + self._index.num_evictable)
            self._evict(n - self._slots.num_free, asker, n)
            page_ids = self._slots.take(n)
            assert transfer.private is not None  # a transfer's never is
            transfer.private.update(page_ids)
            return page_ids

    def last_published(self, holding: Holding) -> CachedPage | None:
        """Returns the page that a writer published or found last. O(1)."""
        with self._lock:
            return holding.pins[-1] if holding in self._holdings and holding.pins else None

    def hold(self, page: CachedPage, *, is_use: bool = True) -> Transfer | None:
        """Pins a page and all above it while they are written to disk; None if it has gone.

        Unless that is a use, they go as soon as they would have gone, or sooner if others use them
        meanwhile; releasing them then takes longer.
        """
        with self._lock:
            if self._closed or not page.attached:
                return None
            used = None if is_use or page.pins else page.last_used
            self._index.pin(page)
            transfer = Transfer([page], self._clock(), used)
            self._holdings.add(transfer)
            return transfer

    def extend(self, holding: Holding, transfer: Transfer) -> list[int] | None:
        """Has a lease hold what a transfer published below it, its tail no more; O(pages).

        Returns:
            Page ids of its prefix now; None if it was released.
        """
        with self._lock:
            if self._closed or holding not in self._holdings:
                return None
            page = transfer.pins[-1]
            self._index.pin(page)
            for pinned in holding.pins:
                self._index.unpin(pinned)
            holding.pins = [page]
            page_ids = []
            while page.parent is not None:
                page_ids.append(page.page_id)
                page = page.parent
            return page_ids[::-1]

    def release(self, holding: Holding) -> None:
        """Gives up a holding; O(pages left without pins). Later calls do nothing."""
        with self._lock:
            self._release(holding)

    def leak(self, holding: Holding) -> None:
        """Takes over the holding of a garbage-collected handle; safe in finalizers."""
        self._leaked.append(holding)

    def drop(self, root: CachedPage, chain: Chain | None) -> int:
        """Drops a namespace, or the subtree at a chain's last full page; O(pages in store)."""
        with self._lock:
            self._require_open("drop")
            top = root
            if chain is not None:
                top, page_ids = self._index.match(root, chain, chain.num_pages)
                if len(page_ids) < chain.num_pages:
                    return 0
            num_dropped = self._index.drop(top) if top.attached else 0
            self._counters.dropped_pages += num_dropped
            return num_dropped

    def keep(self, root: CachedPage, chain: Chain, ttl_s: float) -> int:
        """Spares the cached prefix of a chain from eviction for a while; O(its pages).

        Returns:
            Number of its pages.
        """
        with self._lock:
            self._require_open("keep")
            last, page_ids = self._index.match(root, chain, chain.num_pages)
            self._index.keep(last, self._clock() + ttl_s)
            return len(page_ids)

    def subscribe(self, stream: EventStream) -> None:
        """Begins a stream with the pages that are cached now; O(pages in store)."""
        with self._lock:
            self._require_open("events")
            self._index.subscribe(stream)

    def stats(self) -> Stats:
        """Returns a consistent snapshot; O(pages in store)."""
        with self._lock:
            self._require_open("stats")
            self._expire()
            self._recover_leaked()
            index = self._index
            num_roots = sum(page.parent is None for page in index.by_hash.values())
            num_published = len(index.by_hash) - num_roots + len(index.detached)
            now = self._clock()
            handles = [held for held in self._holdings if not isinstance(held, Transfer)]
            leases = [held.since for held in handles if held.private is None]
            return Stats(
                num_pages=self._slots.num_pages,
                free_pages=self._slots.num_free,
                cached_pages=index.num_evictable,
                pinned_pages=num_published - index.num_evictable,
                reserved_pages=sum(len(held.private or ()) for held in self._holdings),
                kept_pages=sum(page.kept_until > now for page in index.by_hash.values()),
                open_leases=len(leases),
                open_writers=len(handles) - len(leases),
                oldest_lease_s=now - min(leases, default=now),
                mismatched_pages=index.num_mismatched,
                reask_gap_s=self._evicted.gap_s,
                counters=replace(self._counters, quota_evicted_pages=index.policy.over_share()),
            )

    def check_integrity(self) -> None:
        """Raises IntegrityError on any broken invariant; O(pages in store)."""
        with self._lock:
            self._require_open("check_integrity")
            self._recover_leaked()
            pins = [page for held in self._holdings for page in held.pins]
            private = [page_id for held in self._holdings for page_id in held.private or ()]
            check_pages(self._index, self._slots, pins, private)

    def close(self) -> None:
        """Ends all use; later releases do nothing."""
        with self._lock:
            self._closed = True
            self._holdings.clear()

    def _require_open(self, op: str) -> None:
        if self._closed:
            raise StaleHandle(f"[kvstore.{op}] the store must be open; got a closed one")

    def _evict(self, n: int, asker: CachedPage | None, num_wanted: int) -> None:
        """Evicts `n` pages if that is more than 0; the caller knows that there are so many."""
        if n > 0 and asker is not None:
            self._index.policy.ask(asker.namespace, num_wanted)
        now = self._clock()
        for _ in range(n):
            page = self._index.evict()
            self._evicted.add(page.hash, now)
            self._evicted_used = page.last_used
            self._counters.evicted_pages += 1

    def _expire(self) -> None:
        self._counters.expired_pages += self._ages.expire(self._index.drop)

    def _keep(self, holding: Holding, page: CachedPage) -> None:
        """Records a new pin; it covers the last one if that is the page's parent."""
        pins = holding.pins
        if pins and pins[-1] is page.parent:
            self._index.unpin(pins.pop())
        pins.append(page)

    def _release(self, holding: Holding) -> None:
        if holding not in self._holdings:
            return
        self._holdings.remove(holding)
        self._slots.give(holding.private or ())
        used = holding.used if isinstance(holding, Transfer) else None
        for page in holding.pins:
            self._index.unpin(page, used)

    def _recover_leaked(self) -> None:
        while self._leaked:
            self._release(self._leaked.popleft())
            self._counters.leaked_handles += 1
