# SPDX-License-Identifier: Apache-2.0
"""How records that were read become pages of the index, and how pages leave it with all below them.
It reads nothing and takes no lock.
"""

import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kt_kvcache.ages import Ages
from kt_kvcache.disk.format import Record
from kt_kvcache.disk.places import Places
from kt_kvcache.disk.segment import Segment
from kt_kvcache.index import PageIndex
from kt_kvcache.page import CachedPage, PageState

Changes = Sequence[tuple[int, Record | None]]


def absorb(
    index: PageIndex,
    places: Places,
    ages: Ages,
    changes: Sequence[tuple[Segment, Changes]],
    used: Mapping[Segment, NDArray[np.uint64]],
) -> list[tuple[Segment, int, Record]]:
    """Brings the index up to date with records that were read.

    Args:
        index, places, ages: what is brought up to date; the caller holds their lock.
        changes: the records, by segment and slot.
        used: ``last_used`` of owned segments: the order in which pages will go.

    Returns:
        Records without a place in the tree, with their segment and slot: pages whose parent
        is not there, and for segments of our own also duplicates.
    """
    found: list[tuple[int, bool, int, int, Record]] = []
    for segment, records in changes:
        first = places.first_place(segment)
        for slot, record in records:
            old = segment.pages[slot]
            if old is not None and old.attached:
                forget(index, places, old)
            if record is not None and record.name is not None:
                age = -record.created_ns
                position, other = record.name.position, not segment.owned
                found.append((position, other, age, first | slot, record))
    # Parents first; among copies of a page one of our own, and the newest.
    found.sort(key=lambda entry: entry[:4])
    added: list[tuple[int, int, CachedPage]] = []
    now = time.time_ns()
    surplus = []
    for position, other, age, place, record in found:
        name = record.name
        assert name is not None  # or it is not in the list
        if position == 0:
            index.root(name.ns_key)
        page, state = index.publish(name, position, place)
        if page is not None and state is PageState.PUBLISHED:
            segment, slot = places.locate(place)
            segment.pages[slot] = page
            page.born = record.created_ns
            ages.add(page)
            if not other:
                when = max(-age, int(used[segment][slot]) if segment in used else 0)
                added.append((min(when, now), position, page))
            continue
        if page is not None:
            index.unpin(page)
        if not other or page is None:
            surplus.append((*places.locate(place), record))
    # What was used after the times were written last counts as used then, or when made.
    added.sort(key=lambda entry: entry[:2])
    for when, _, page in added:
        index.use_at(when or now)
        index.unpin(page)
    return surplus


def forget(index: PageIndex, places: Places, top: CachedPage) -> list[CachedPage]:
    """Takes `top` and all below out of the index; what leases hold keeps its slot."""
    doomed = index.subtree(top)
    index.drop(top)
    for page in reversed(doomed):
        if page.parent is None:
            continue
        segment, slot = places.locate(page.page_id)
        if not segment.owned:
            segment.pages[slot] = None
            index.unpin(page)
    return doomed
