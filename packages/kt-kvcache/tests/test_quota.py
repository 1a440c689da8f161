# SPDX-License-Identifier: Apache-2.0
"""Shares of namespaces: a policy of its own, and in stores of 16 pages."""

from random import Random

import pytest

from kt_kvcache import Arena, KVStore, StoreConfig
from kt_kvcache.eviction import LruPolicy
from kt_kvcache.page import CachedPage
from kt_kvcache.quota import QuotaPolicy


def opened(share, num_pages=16):
    arena = Arena.allocate(num_pages=num_pages, strides=[8, 8])
    return KVStore.open(config=StoreConfig(num_pages, 2, tenant_share=share), arena=arena)


def publish(space, tokens):
    chain = space.chain(tokens)
    with space.reserve(chain, 0, chain.num_pages) as writer:
        writer.commit(writer.num_pages, after=None)


def num_pages(space, tokens):
    return space.probe(space.chain(tokens)).num_pages


def test_who_has_more_than_his_share_loses_his_own(identity, geometry):
    with opened(0.5) as store:
        alice, bob = (store.space(identity, geometry, name) for name in ("alice", "bob"))
        publish(bob, [7] * 16)  # 8 pages: all that he is sure of
        for i in range(20):
            publish(alice, [i] * 8)
            store.check_integrity()
        assert num_pages(bob, [7] * 16) == 8
        assert [num_pages(alice, [i] * 8) for i in (17, 18, 19)] == [0, 4, 4]
        counters = store.stats().counters
        assert counters.quota_evicted_pages == counters.evicted_pages == 4 * 18


def test_what_nobody_needs_may_be_used_and_is_given_back_first(identity, geometry):
    with opened(0.25) as store:
        alice, bob = (store.space(identity, geometry, name) for name in ("alice", "bob"))
        for i in range(4):
            publish(alice, [i] * 8)
        assert store.stats().cached_pages == 16
        publish(bob, [7] * 8)
        assert (num_pages(bob, [7] * 8), store.stats().cached_pages) == (4, 16)
        publish(bob, [8] * 6)  # more than his share, but less than she has
        assert [num_pages(bob, [i] * 8) for i in (7, 8)] == [4, 3]
        assert [num_pages(alice, [i] * 8) for i in range(4)] == [0, 1, 4, 4]


def test_without_shares_the_least_used_pages_go(identity, geometry):
    with opened(1.0) as store:
        alice, bob = (store.space(identity, geometry, name) for name in ("alice", "bob"))
        publish(bob, [7] * 16)
        for i in range(4):
            publish(alice, [i] * 8)
        assert num_pages(bob, [7] * 16) == 0
        assert store.stats().counters.quota_evicted_pages == 0


def test_pages_in_use_are_taken_from_nobody(identity, geometry):
    with opened(0.25) as store:
        alice, bob = (store.space(identity, geometry, name) for name in ("alice", "bob"))
        publish(bob, [7] * 6)
        publish(alice, [1] * 20)
        with alice.acquire(alice.chain([1] * 20)) as lease:
            publish(alice, [2] * 12)  # his are all that can go
            assert lease.num_pages == 10
            assert num_pages(bob, [7] * 6) < 3
        store.check_integrity()


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_a_share_is_a_part(share):
    with pytest.raises(ValueError, match="tenant_share must be"):
        StoreConfig(16, 2, tenant_share=share)


def test_any_order_of_calls_keeps_the_policy_whole():
    random, policy = Random(0), QuotaPolicy(LruPolicy(), 3)
    roots = [CachedPage(bytes([i]), None, b"", -1) for i in range(3)]
    inside, outside = [], []
    for clock in range(3000):
        if not outside or (len(inside) + len(outside) < 12 and random.random() < 0.3):
            page = CachedPage(b"", random.choice(roots), b"", 0)
            page.namespace.num_pages += 1
            policy.admit(page)
            outside.append(page)
        elif random.random() < 0.5:
            page = outside.pop(random.randrange(len(outside)))
            page.last_used = clock
            policy.add(page)
            inside.append(page)
        elif inside and random.random() < 0.5:
            policy.remove(page := inside.pop(random.randrange(len(inside))))
            outside.append(page)
        elif inside:
            beyond = [page for page in inside if page.namespace.num_pages > 3]
            most = max((page.namespace.num_pages for page in beyond), default=0)
            victim = policy.pop()
            victims = [page for page in beyond if page.namespace.num_pages == most] or inside
            assert victim in victims
            its = [page for page in inside if page.namespace is victim.namespace]
            assert victim.last_used == min(page.last_used for page in its)
            victim.namespace.num_pages -= 1
            inside.remove(victim)
        assert len(policy) == len(inside)
        assert all(page in policy for page in inside)
