# SPDX-License-Identifier: Apache-2.0
"""Recomputes what index and slots must look like from scratch; changes nothing."""

from collections import Counter
from collections.abc import Iterable

from kt_kvcache.errors import IntegrityError
from kt_kvcache.index import PageIndex
from kt_kvcache.page import CachedPage
from kt_kvcache.slots import Slots


def check_pages(
    index: PageIndex, slots: Slots, pins: Iterable[CachedPage], private: Iterable[int]
) -> None:
    """Raises IntegrityError unless every invariant holds; O(pages in store).

    Args:
        index: the trie, under its lock.
        slots: the free list.
        pins: one entry for each pin that an open lease or writer holds.
        private: page ids that open writers hold.
    """
    check_tree(index)
    expected = _pins_from_below(index)
    expected.update(pins)
    for page in (*index.by_hash.values(), *index.detached):
        _require(page.pins == expected[page], f"has {expected[page]} pins", page)
    _check_slots(list(index.by_hash.values()), index.detached, slots, list(private))


def check_tree(index: PageIndex) -> None:
    """Raises IntegrityError unless the trie fits itself, whoever holds its pages; O(pages).

    Args:
        index: under its lock.
    """
    attached = list(index.by_hash.values())
    _check_links(index, attached)
    _check_pins(index, attached)


def _check_links(index: PageIndex, attached: list[CachedPage]) -> None:
    num_children = Counter(page.parent for page in attached)
    num_pages = Counter(page.namespace for page in attached if page.parent is not None)
    for page_hash, page in index.by_hash.items():
        _require(page.attached and page.hash == page_hash, "indexed under its own hash", page)
        _require(len(page.children) == num_children[page], "knows its children", page)
        _require(page.num_branches >= num_children[page], "has counted its branches", page)
        bodies = [child.body for child in page.children if child.parent is page]
        in_order = len(bodies) == len(page.children) and bodies == sorted(set(bodies))
        _require(in_order, "has its own children, in the order of their bodies", page)
        counted = page.namespace.num_pages == num_pages[page.namespace]
        _require(counted, "is in a namespace that has counted its pages", page)
        if page.parent is not None:
            parent = page.parent
            _require(index.by_hash.get(parent.hash) is parent, "has its parent cached", page)
            ordered = page.pins or parent.pins or page.last_used <= parent.last_used
            _require(bool(ordered), "is not used later than its parent", page)
    for page in index.detached:
        _require(not page.attached, "is detached", page)


def _pins_from_below(index: PageIndex) -> Counter[CachedPage]:
    """Pins that pages have for pages below them, and roots for being roots."""
    pins: Counter[CachedPage] = Counter()
    for page in (*index.by_hash.values(), *index.detached):
        if page.parent is None:
            pins[page] += 1
        elif page.pins:
            pins[page.parent] += 1
    return pins


def _check_pins(index: PageIndex, attached: list[CachedPage]) -> None:
    from_below = _pins_from_below(index)
    for page in (*attached, *index.detached):
        least = from_below[page]
        _require(page.pins >= least, f"has at least {least} pins", page)
    for page in index.detached:
        _require(page.pins > 0, "is detached only while pinned", page)
    unpinned = [page for page in attached if not page.pins]
    leaves = [page for page in unpinned if not page.children]
    if len(unpinned) != index.num_evictable:
        raise IntegrityError(
            f"[kvstore.check_integrity] num_evictable must be {len(unpinned)}; "
            f"got {index.num_evictable}"
        )
    if len(leaves) != len(index.policy) or any(page not in index.policy for page in leaves):
        raise IntegrityError(
            "[kvstore.check_integrity] the policy must hold the unpinned leaves; "
            f"got {len(index.policy)} pages for {len(leaves)} leaves"
        )


def _check_slots(
    attached: list[CachedPage], detached: set[CachedPage], slots: Slots, private: list[int]
) -> None:
    published = [page.page_id for page in (*attached, *detached) if page.parent is not None]
    free = slots.free_ids()
    owned = Counter([*published, *private, *free])
    if len(free) != slots.num_free or owned != Counter(range(slots.num_pages)):
        wrong = sorted(i for i in {*owned, *range(slots.num_pages)} if owned[i] != 1)
        raise IntegrityError(
            "[kvstore.check_integrity] every slot must be free, private or published once; "
            f"got {len(free)} free, {len(private)} private, {len(published)} published, "
            f"wrong: {wrong[:8]}"
        )


def _require(holds: bool, rule: str, page: CachedPage) -> None:
    if not holds:
        raise IntegrityError(
            f"[kvstore.check_integrity] page {page.page_id} {rule}; got pins={page.pins}, "
            f"children={len(page.children)}, attached={page.attached}"
        )
