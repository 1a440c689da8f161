# SPDX-License-Identifier: Apache-2.0
"""Which pages in memory are to be on disk, and when (``StoreConfig.write_policy``). It writes
nothing; whether there is room, time and a drive for them is others' to say.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from kt_kvcache.config import StoreConfig
from kt_kvcache.disk.pages import DiskPages
from kt_kvcache.page import CachedPage
from kt_kvcache.ram_tier import RamTier

# Pages whose uses are counted, 150 bytes each: those of some millions of tokens, far more than
# are asked for again.
_MAX_COUNTED = 1 << 16


@dataclass(slots=True)
class Offer:
    """Pages in memory that shall be on disk: `tail` and all above it; `num_new` are new."""

    tail: CachedPage
    num_new: int

    @property
    def above(self) -> CachedPage | None:
        """The page above the new ones; None if some of them have gone from their tree."""
        page: CachedPage | None = self.tail
        for _ in range(self.num_new):
            page = None if page is None else page.parent
        return page


class WritePolicy(Protocol):
    """All calls but ``num_held`` come from the thread that writes, and return what it has to write
    now.
    """

    def committed(self, offer: Offer) -> Iterable[Offer]:
        """New pages were published in memory."""

    def used(self, tail: CachedPage) -> Iterable[Offer]:
        """A page and those above it were found in memory."""

    def due(self) -> Iterable[Offer]:
        """Time has passed."""

    def rest(self) -> Iterable[Offer]:
        """Somebody wants all on disk that will be."""

    def dropped(self, top: bytes) -> None:
        """The page, or namespace, with this hash was dropped, and all below it."""

    def num_held(self) -> int:
        """New pages that wait for ``due`` or ``rest``."""


class Through(WritePolicy):
    """Every page, at once."""

    def committed(self, offer: Offer) -> Iterable[Offer]:
        """See ``WritePolicy``."""
        return (offer,)

    def used(self, tail: CachedPage) -> Iterable[Offer]:
        """See ``WritePolicy``."""
        return ()

    def due(self) -> Iterable[Offer]:
        """See ``WritePolicy``."""
        return ()

    def rest(self) -> Iterable[Offer]:
        """See ``WritePolicy``."""
        return ()

    def dropped(self, top: bytes) -> None:
        """See ``WritePolicy``."""

    def num_held(self) -> int:
        """See ``WritePolicy``."""
        return 0


class Selective(Through):
    """A page once so many sequences have had it. Uses outlive the page in memory, so that one that
    is computed again counts on; pages on disk are not counted.
    """

    def __init__(self, pages: DiskPages, num_uses: int) -> None:
        """Starts without any; `pages` says what is on disk."""
        self._pages, self._num_uses = pages, num_uses
        self._uses: OrderedDict[bytes, int] = OrderedDict()

    def committed(self, offer: Offer) -> Iterable[Offer]:
        """See ``WritePolicy``."""
        new: list[CachedPage] = []
        page = offer.tail
        while len(new) < offer.num_new and page.parent is not None:
            new.append(page)
            page = page.parent
        return self._count(new[::-1])

    def used(self, tail: CachedPage) -> Iterable[Offer]:
        """See ``WritePolicy``."""
        return self._count(self._pages.missing(tail))

    def _count(self, pages: list[CachedPage]) -> Iterable[Offer]:
        """Counts a use of consecutive pages. Those that have enough come first: who uses a page
        uses all above it."""
        num_ready = 0
        for i, page in enumerate(pages, 1):
            uses = self._uses.pop(page.hash, 0) + 1
            self._uses[page.hash] = uses
            if uses >= self._num_uses:
                num_ready = i
        while len(self._uses) > _MAX_COUNTED:
            self._uses.popitem(last=False)
        return (Offer(pages[num_ready - 1], num_ready),) if num_ready else ()


class Back(Through):
    """What memory would soon evict, and at the end all."""

    def __init__(self, ram: RamTier) -> None:
        """Starts with nothing held; `ram` says what goes next."""
        self._ram = ram
        self._held: dict[CachedPage, Offer] = {}  # by tail, in order of arrival

    def committed(self, offer: Offer) -> Iterable[Offer]:
        """See ``WritePolicy``."""
        above = offer.above
        if above is not None and (earlier := self._held.pop(above, None)) is not None:
            offer = Offer(offer.tail, earlier.num_new + offer.num_new)
        self._held[offer.tail] = offer
        return ()

    def due(self) -> Iterable[Offer]:
        """See ``WritePolicy``."""
        last_use = self._ram.evicts_soon()
        return self._take(
            [tail for tail in self._held if not tail.pins and tail.last_used <= last_use]
            if last_use is not None
            else []
        )

    def rest(self) -> Iterable[Offer]:
        """See ``WritePolicy``."""
        return self._take(list(self._held))

    def dropped(self, top: bytes) -> None:
        """See ``WritePolicy``."""
        for tail, offer in list(self._held.items()):
            page, num_dropped = tail, 1
            while page.hash != top and page.parent is not None:
                page, num_dropped = page.parent, num_dropped + 1
            if page.hash == top:
                del self._held[tail]
                if num_dropped < offer.num_new and page.parent is not None:
                    self._held[page.parent] = Offer(page.parent, offer.num_new - num_dropped)

    def num_held(self) -> int:
        """See ``WritePolicy``."""
        return sum(offer.num_new for offer in list(self._held.values()))

    def _take(self, tails: list[CachedPage]) -> list[Offer]:
        return [self._held.pop(tail) for tail in tails]


def open_write_policy(config: StoreConfig, pages: DiskPages, ram: RamTier) -> WritePolicy:
    """Returns what the configuration names."""
    if config.write_policy == "selective":
        return Selective(pages, config.write_uses)
    return Back(ram) if config.write_policy == "back" else Through()


def by_chain(offers: Iterable[Offer]) -> list[Offer]:
    """Returns what was offered bit by bit as a sequence grew at once, in the turn of its first."""
    chains: list[Offer] = []
    turns: dict[CachedPage, int] = {}  # of the last page of each
    for offer in offers:
        above = offer.above
        turn = None if above is None else turns.pop(above, None)
        if turn is None:
            turn = len(chains)
            chains.append(offer)
        else:
            chains[turn] = Offer(offer.tail, chains[turn].num_new + offer.num_new)
        turns[offer.tail] = turn
    return chains
