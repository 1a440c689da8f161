# SPDX-License-Identifier: Apache-2.0
import pytest

from kt_kvcache.chain import Chain
from kt_kvcache.errors import IntegrityError
from kt_kvcache.eviction import LruPolicy
from kt_kvcache.page import CachedPage
from kt_kvcache.ram_tier import RamTier

NS_KEY = bytes(32)


@pytest.fixture
def tier():
    """Pages 0 and 1 cached, 2 pinned below 0, 3 dropped but pinned, 4 private, 5 free."""
    tier = RamTier(6, LruPolicy())
    tier.root("test", NS_KEY)
    for tokens in ([1, 2], [1, 3], [4]):
        holding, page_ids = tier.reserve(len(tokens))
        chain = Chain(NS_KEY, 1)
        chain.extend(tokens)
        tier.publish(holding, chain, 0, page_ids)
        if tokens == [1, 2]:
            tier.release(holding)
    tier.drop(tier.root("test", NS_KEY), chain)
    tier.check_integrity()
    return tier


def pages(tier):
    return {page.page_id: page for page in tier._index.by_hash.values()}


def lose_a_pin(tier):
    pages(tier)[0].pins -= 1


def gain_a_pin(tier):
    tier._index.pin(pages(tier)[1])


def forget_a_child(tier):
    pages(tier)[0].children.pop()


def confuse_the_order_of_children(tier):
    pages(tier)[0].parent.children.insert(0, pages(tier)[1])


def forget_a_branch(tier):
    pages(tier)[0].num_branches = 0


def orphan_a_child(tier):
    del tier._index.by_hash[pages(tier)[0].hash]


def index_under_a_wrong_hash(tier):
    page = pages(tier)[1]
    tier._index.by_hash[b"x"] = tier._index.by_hash.pop(page.hash)


def miscount_evictable(tier):
    tier._index.num_evictable += 1


def hide_from_the_policy(tier):
    tier._index.policy.remove(pages(tier)[1])


def offer_a_pinned_page(tier):
    tier._index.policy.add(next(p for p in pages(tier).values() if p.pins))


def share_a_slot(tier):
    pages(tier)[1].page_id = 0


def lose_a_slot(tier):
    tier._slots.take(1)


def free_a_private_slot(tier):
    _, page_ids = tier.reserve(1)
    tier._slots.give(page_ids)


def keep_a_detached_page_without_pins(tier):
    page = CachedPage(b"", tier.root("test", NS_KEY), b"", 0)
    page.attached, page.pins = False, 0
    tier._index.detached.add(page)


def attach_a_dropped_page(tier):
    next(iter(tier._index.detached)).attached = True


def use_a_child_after_its_parent(tier):
    for held in list(tier._holdings):
        tier.release(held)
    pages(tier)[1].last_used += 100


@pytest.mark.parametrize(
    "damage",
    [
        lose_a_pin,
        gain_a_pin,
        forget_a_child,
        confuse_the_order_of_children,
        forget_a_branch,
        orphan_a_child,
        index_under_a_wrong_hash,
        miscount_evictable,
        hide_from_the_policy,
        offer_a_pinned_page,
        share_a_slot,
        lose_a_slot,
        free_a_private_slot,
        keep_a_detached_page_without_pins,
        attach_a_dropped_page,
        use_a_child_after_its_parent,
    ],
)
def test_every_kind_of_damage_is_found(tier, damage):
    damage(tier)
    with pytest.raises(IntegrityError, match=r"\[kvstore.check_integrity\] .*; got "):
        tier.check_integrity()
