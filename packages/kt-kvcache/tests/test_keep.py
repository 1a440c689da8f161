# SPDX-License-Identifier: Apache-2.0
import pytest

from kt_kvcache import KVStore, StoreConfig
from kt_kvcache.eviction import LruPolicy
from kt_kvcache.keep import KeepingPolicy
from kt_kvcache.page import CachedPage


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    with KVStore.open(config=StoreConfig(8, 2), clock=clock) as store:
        yield store
        store.check_integrity()


@pytest.fixture
def space(store, identity, geometry):
    return store.space(identity, geometry)


def press(space, n):
    """Evicts until `n` pages are free."""
    space.reserve(space.chain([]), 0, n).release()


def cached(space, tokens):
    return space.probe(space.chain(tokens)).num_tokens


def test_kept_pages_outlive_others_used_later_until_their_time_is_up(space, store, fill, clock):
    fill([1, 2, 3, 4]).release()
    assert space.keep(space.chain([1, 2, 3, 4, 5, 6]), ttl_s=10) == 4
    fill([5, 6]).release()
    assert store.stats().kept_pages == 2
    press(space, 6)
    assert (cached(space, [1, 2, 3, 4]), cached(space, [5, 6])) == (4, 0)
    fill([5, 6]).release()
    clock.now += 10
    assert store.stats().kept_pages == 0
    press(space, 7)
    assert (cached(space, [1, 2, 3, 4]), cached(space, [5, 6])) == (0, 2)


def test_kept_pages_go_when_nothing_else_is_left_leaves_and_earliest_ends_first(space, fill):
    fill([1, 2, 3, 4]).release()
    fill([5, 6]).release()
    space.keep(space.chain([1, 2, 3, 4]), ttl_s=20)
    space.keep(space.chain([5, 6]), ttl_s=10)
    press(space, 6)
    assert (cached(space, [1, 2, 3, 4]), cached(space, [5, 6])) == (4, 0)
    press(space, 7)
    assert cached(space, [1, 2, 3, 4]) == 2
    press(space, 8)


def test_the_last_call_decides(space, fill):
    fill([1, 2]).release()
    fill([5, 6]).release()
    space.keep(space.chain([1, 2]), ttl_s=10)
    space.keep(space.chain([1, 2]), ttl_s=0)
    press(space, 7)
    assert (cached(space, [1, 2]), cached(space, [5, 6])) == (0, 2)


def test_a_page_kept_while_held_is_kept_once_released(space, fill):
    writer = fill([1, 2])
    space.keep(space.chain([1, 2]), ttl_s=10)
    writer.release()
    fill([5, 6]).release()
    with space.acquire(space.chain([1, 2])):
        pass
    press(space, 7)
    assert cached(space, [1, 2]) == 2


def test_what_is_not_cached_is_not_kept(space, store):
    assert space.keep(space.chain([1, 2]), ttl_s=10) == 0
    assert store.stats().kept_pages == 0


@pytest.mark.parametrize("ttl_s", [-1, float("nan"), "1", True])
def test_bad_times_are_refused(space, ttl_s):
    with pytest.raises(ValueError, match=r"\[kvstore.keep\] ttl_s must be seconds >= 0; got"):
        space.keep(space.chain([1, 2]), ttl_s)


def test_a_kept_page_can_be_removed_and_counts(clock):
    policy = KeepingPolicy(LruPolicy(), clock)
    kept, other = (CachedPage(b"", None, b"", i) for i in range(2))
    kept.kept_until = clock.now + 1
    policy.add(kept)
    policy.add(other)
    assert (len(policy), kept in policy, other in policy) == (2, True, True)
    policy.remove(kept)
    assert (len(policy), kept in policy) == (1, False)
    assert policy.pop() is other


def test_a_lease_has_an_age(space, store, clock):
    assert store.stats().oldest_lease_s == 0
    lease = space.acquire(space.chain([1, 2]))
    clock.now += 5
    with space.acquire(space.chain([1, 2])), space.reserve(space.chain([]), 0, 1):
        clock.now += 2
        assert store.stats().oldest_lease_s == 7
    lease.release()
    assert store.stats().oldest_lease_s == 0
