# SPDX-License-Identifier: Apache-2.0
"""Every kind of damage to the index of a disk is found; test_disk_store.py has what it does."""

import pytest

from kt_kvcache import IntegrityError

from .known_pages import fill, space_of


def hide_from_the_policy(pages):
    index = pages._index
    index.policy.remove(next(page for page in index.by_hash.values() if page in index.policy))


def free_a_place_in_use(pages):
    pages._places.add_free([max(page.page_id for page in pages._index.by_hash.values())])


def free_a_place_twice(pages):
    pages._places.add_free([7 << 32] * 2)


def forget_which_page_a_slot_holds(pages):
    segment = pages.segments()[0]
    slot = next(i for i, page in enumerate(segment.pages) if page is not None)
    segment.pages[slot] = None


@pytest.mark.parametrize(
    "damage",
    [
        hide_from_the_policy,
        free_a_place_in_use,
        free_a_place_twice,
        forget_which_page_a_slot_holds,
    ],
)
def test_every_kind_of_damage_is_found(open_store, damage):
    store = open_store()
    fill(space_of(store), list(range(32)))
    store.flush(durable=False).result(30)
    store.check_integrity()
    damage(store._disk._pages)
    with pytest.raises(IntegrityError, match=r"\[kvstore.check_integrity\] .*; got "):
        store.check_integrity()
