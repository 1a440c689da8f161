# SPDX-License-Identifier: Apache-2.0
"""One namespace of a store: the calls an engine makes for each request. It holds no state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kt_kvcache.arena import Arena
from kt_kvcache.chain import Chain, Extra, TokenIds
from kt_kvcache.disk.tier import DiskTier
from kt_kvcache.errors import StaleHandle, require_int, require_seconds, require_type
from kt_kvcache.events import Tier
from kt_kvcache.lease import Lease
from kt_kvcache.page import CachedPage
from kt_kvcache.ram_tier import RamTier
from kt_kvcache.window import Window
from kt_kvcache.writer import Writer


@dataclass(frozen=True, slots=True)
class Hit:
    """What a chain would find now.

    Attributes:
        num_tokens: tokens in cached full pages from the start of the chain, in memory or on disk.
        num_pages: these pages.
        by_tier: how many of them each tier would serve.
        num_bytes: what would be read from disk; less if some of it is in memory and only not
            usable alone.
        eta_s: seconds that would take, judged by the last loads, or by 1 GB/s before there was
            one; 0.0 if all is in memory.
    """

    num_tokens: int
    num_pages: int
    by_tier: Mapping[Tier, int]
    num_bytes: int = 0
    eta_s: float = 0.0


class Space:
    """Pages of one (identity, geometry, tenant); made by ``KVStore.space``. Thread-safe.

    Two spaces with the same key share their pages; spaces with different keys never do.
    """

    def __init__(
        self,
        tier: RamTier,
        arena: Arena | None,
        root: CachedPage,
        page_tokens: int,
        disk: DiskTier | None = None,
        window: Window | None = None,
    ) -> None:
        """Binds a namespace's root; callers use ``KVStore.space``."""
        self._tier = tier
        self._arena = arena
        self._root = root
        self._disk = disk
        self._window = window
        self._window_pages = 0 if window is None else window.num_pages
        self.page_tokens = page_tokens

    @property
    def ns_key(self) -> bytes:
        """The 32-byte namespace key, h_0 of its chains."""
        return self._root.hash

    def chain(self, tokens: TokenIds, extras: Sequence[Extra] = ()) -> Chain:
        """Hashes a token sequence; see ``Chain``. O(len(tokens)), no lock."""
        chain = Chain(self.ns_key, self.page_tokens)
        chain.extend(tokens, extras)
        return chain

    def probe(self, chain: Chain) -> Hit:
        """Looks how much of `chain` is cached, without pinning it; O(pages found).

        The answer may be old by the time it is read: to use pages, acquire them.
        """
        self._require_usable("probe", chain)
        num_pages = self._tier.probe(self._root, chain, self._window_pages)
        by_tier = {Tier.MEMORY: num_pages}
        num_bytes, eta_s = 0, 0.0
        if self._disk is not None:
            num_known = max(num_pages, self._disk.count(self.ns_key, chain))
            num_to_load = by_tier[Tier.DISK] = num_known - num_pages
            num_bytes = self._disk.bytes_of(num_to_load, self._window)
            num_pages, eta_s = num_known, num_bytes / self._disk.read_rate.bytes_per_s
        return Hit(num_pages * self.page_tokens, num_pages, by_tier, num_bytes, eta_s)

    def acquire(self, chain: Chain, max_tokens: int | None = None, *, tail: bool = False) -> Lease:
        """Finds and pins the longest cached prefix of full pages; O(pages found).

        Finding is pinning: nothing can evict a page in between. A page counts only if its
        tokens, extras and parent are those of the chain; a hash alone is not enough.

        Args:
            chain: of this space.
            max_tokens: upper limit of the prefix, such as one less than the prompt where the
                last token must be computed for its logits.
            tail: also pin the page that continues the prefix for part of a page, if there is
                one (``lease.tail``). It can be evicted again after ``writer.copy_tail`` or
                ``lease.release_tail``. O(log pages with this prefix).
        """
        self._require_usable("acquire", chain)
        num_tokens = chain.num_tokens
        if max_tokens is not None:
            num_tokens = min(num_tokens, require_int("acquire", "max_tokens", max_tokens, 0))
        holding, page_ids, found = self._tier.acquire(
            self._root, chain, num_tokens, with_tail=tail, window_pages=self._window_pages
        )
        on_disk = None
        if self._disk is not None:
            tail_above = (0 if found is None else found[1]) if tail else None
            on_disk = self._disk.find(self.ns_key, chain, len(page_ids), num_tokens, tail_above)
        return Lease(
            self._tier,
            self._arena,
            self._root,
            holding,
            page_ids,
            chain.page_tokens,
            found,
            self._disk,
            on_disk,
            self._window,
        )

    def reserve(self, chain: Chain, first_page: int, n: int) -> Writer:
        """Takes `n` writable pages for positions [first_page, first_page + n) of `chain`.

        The chain may be shorter now and grow before the commit. Where free pages do not
        suffice, cached ones that nobody holds are evicted. The pages' bytes are undefined.
        Keep the prefix before `first_page` pinned (by its lease or writer): pages whose parent
        is gone cannot be published. O(n + evictions x log pages).

        Raises:
            OutOfPages: not enough pages; nothing has changed.
        """
        self._require_usable("reserve", chain)
        first_page = require_int("reserve", "first_page", first_page, 0)
        n = require_int("reserve", "n", n, 1)
        holding, page_ids = self._tier.reserve(n, self._root)
        return Writer(
            self._tier,
            self._arena,
            self._root,
            holding,
            page_ids,
            chain,
            first_page,
            self._disk,
            self._window,
        )

    def keep(self, chain: Chain, ttl_s: float) -> int:
        """Keeps the cached prefix of `chain` in memory for a while, such as a system prompt's.

        These pages are evicted only when no others are left. A later call for the same pages
        decides anew; 0 seconds end it. Pages cached later are not kept: call it after the commit.
        O(pages found).

        Args:
            chain: of this space.
            ttl_s: seconds.

        Returns:
            Number of tokens kept.
        """
        self._require_usable("keep", chain)
        seconds = require_seconds("keep", "ttl_s", ttl_s)
        return self._tier.keep(self._root, chain, seconds) * self.page_tokens

    def drop(self, chain: Chain | None = None) -> int:
        """Forgets pages; those in use keep their slots until released. O(pages in the store).

        Args:
            chain: forget its last full page and all below it, if that page is cached; leases
                and writers stay usable. None: forget the whole namespace and end this space;
                its leases and writers can then only be released.

        With a disk this waits until the pages cannot come back, not even after a power cut; other
        processes on the same root forget what they have on disk within seconds.

        Returns:
            Number of pages forgotten.

        Raises:
            OSError: the disk refused; pages may come back after a crash. Memory has forgotten them.
        """
        self._require_alive("drop")
        if chain is not None:
            self._require_usable("drop", chain)
            if not chain.num_pages:
                raise ValueError(
                    f"[kvstore.drop] chain must have a full page; got {chain.num_tokens} tokens"
                )
        num_dropped = self._tier.drop(self._root, chain)
        if self._disk is not None:
            on_disk = self._disk.drop(self.ns_key, chain).result()
            # Again: a load may have brought pages back before the disk had forgotten them.
            num_dropped += self._tier.drop(self._root, chain)
            num_dropped = max(num_dropped, on_disk)
        return num_dropped

    def _require_alive(self, op: str) -> None:
        if not self._root.attached:
            raise StaleHandle(f"[kvstore.{op}] the space must be alive; got a dropped one")

    def _require_usable(self, op: str, chain: Chain) -> None:
        self._require_alive(op)
        require_type(op, "chain", chain, Chain)
        if chain.ns_key != self.ns_key:
            raise ValueError(
                f"[kvstore.{op}] chain must come from this space; got one of another namespace"
            )
