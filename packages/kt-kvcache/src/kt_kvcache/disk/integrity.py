# SPDX-License-Identifier: Apache-2.0
"""What must hold between the index of a disk and its places; it reads no file."""

from collections import Counter

from kt_kvcache.disk.places import Places
from kt_kvcache.errors import IntegrityError
from kt_kvcache.index import PageIndex
from kt_kvcache.integrity import check_tree


def check_places(index: PageIndex, places: Places) -> None:
    """Raises IntegrityError unless tree, segments and free places fit each other; O(pages)."""
    check_tree(index)
    uses = Counter(places.unused())
    for page in index.by_hash.values():
        if page.parent is not None:
            uses[page.page_id] += 1
            segment, slot = places.locate(page.page_id)
            if segment.pages[slot] is not page:
                raise IntegrityError(
                    "[kvstore.check_integrity] a segment must know the page in each of its "
                    f"slots; got another one in slot {slot} of segment {segment.name}"
                )
    twice = [place for place, count in uses.items() if count > 1]
    if twice:
        raise IntegrityError(
            "[kvstore.check_integrity] a place must be free or hold one page; got "
            f"{len(twice)} that do more, the first {twice[0]:#x}"
        )
