# SPDX-License-Identifier: Apache-2.0
import threading

import pytest

from kt_kvcache.chain import Chain
from kt_kvcache.errors import OutOfPages
from kt_kvcache.eviction import LruPolicy
from kt_kvcache.page import PageState
from kt_kvcache.ram_tier import RamTier

NS_KEY = bytes(32)


@pytest.fixture
def tier():
    tier = RamTier(4, LruPolicy())
    yield tier
    tier.check_integrity()


def make(tokens):
    chain = Chain(NS_KEY, 1)
    chain.extend(tokens)
    return chain


def publish(tier, tokens, first_page=0):
    """Publishes one page per token from `first_page` on and keeps the writer's holding."""
    tier.root("test", NS_KEY)
    chain = make(tokens)
    holding, page_ids = tier.reserve(len(tokens) - first_page)
    states = tier.publish(holding, chain, first_page, page_ids)
    return holding, page_ids, states


def test_reserving_evicts_only_what_is_missing(tier):
    tier.release(publish(tier, [1, 2, 3])[0])
    tier.reserve(2)
    assert tier.stats().counters.evicted_pages == 1
    assert tier.probe(tier.root("test", NS_KEY), make([1, 2, 3])) == 2


def test_reserving_too_much_changes_nothing(tier):
    tier.release(publish(tier, [1, 2])[0])
    before = tier.stats()
    with pytest.raises(OutOfPages) as caught:
        tier.reserve(5)
    error = caught.value
    numbers = (error.num_requested, error.num_free, error.num_evictable, error.num_pages)
    assert numbers == (5, 2, 2, 4)
    assert "got 5 requested, 2 free, 2 evictable of 4" in str(error)
    assert tier.stats() == before


def test_a_writers_pages_stay_while_it_is_open_even_if_dropped_and_published_anew(tier):
    first, _, _ = publish(tier, [1])
    tier.drop(tier.root("test", NS_KEY), make([1]))
    second, _, _ = publish(tier, [1])
    tier.release(second)
    assert len(tier.reserve(3)[1]) == 3  # evicts the second's page, not the dropped one
    with pytest.raises(OutOfPages):
        tier.reserve(1)
    tier.release(first)
    assert tier.reserve(1)[1] == [0]


def test_a_writer_follows_its_prefix_to_pages_published_anew(tier):
    chain, root = make([1, 2]), tier.root("test", NS_KEY)
    writer, ids = tier.reserve(2)
    assert tier.publish(writer, chain, 0, ids[:1]) == [PageState.PUBLISHED]
    tier.drop(root, make([1]))
    other, _, _ = publish(tier, [1])
    assert tier.publish(writer, chain, 1, ids[1:]) == [PageState.PUBLISHED]
    tier.check_integrity()
    tier.release(other)
    with pytest.raises(OutOfPages):
        tier.reserve(2)  # three pages are the writer's: two published, one dropped
    tier.release(writer)
    assert tier.stats().free_pages == 2
    assert tier.probe(root, chain) == 2


def test_releasing_twice_and_after_close_does_nothing(tier):
    holding, _, _ = publish(tier, [1, 2])
    tier.release(holding)
    before = tier.stats()
    tier.release(holding)
    assert tier.stats() == before
    closed = RamTier(1, LruPolicy())
    held, _ = closed.reserve(1)
    closed.close()
    closed.release(held)
    assert closed.closed


def test_leaked_holdings_are_recovered_when_pages_are_needed(tier):
    holding, _ = tier.reserve(4)
    tier.leak(holding)
    again, page_ids = tier.reserve(4)
    assert sorted(page_ids) == [0, 1, 2, 3]
    assert tier.stats().counters.leaked_handles == 1
    tier.release(again)


def test_a_finalizer_inside_the_lock_does_not_deadlock(tier):
    holding, _ = tier.reserve(1)
    done = threading.Event()

    def finalize_inside():
        with tier._lock:  # as a garbage collection in the middle of a call would
            tier.leak(holding)
        done.set()

    thread = threading.Thread(target=finalize_inside, daemon=True)
    thread.start()
    assert done.wait(5)
    assert tier.stats().free_pages == 4


def test_dropping_a_chain_that_is_not_cached_in_full_drops_nothing(tier):
    publish(tier, [1, 2])
    root = tier.root("test", NS_KEY)
    assert tier.drop(root, make([1, 2, 3])) == 0
    assert tier.drop(root, make([1, 2])) == 1
    assert tier.drop(root, None) == 1
    assert tier.drop(root, None) == 0


def test_a_page_that_is_wanted_again_after_its_eviction_is_counted():
    now = [0.0]
    tier = RamTier(4, LruPolicy(), lambda: now[0])
    for tokens in ([1, 2], [3, 4, 5, 6], [1], [7]):
        now[0] += 10
        tier.release(publish(tier, tokens)[0])
    stats = tier.stats()
    assert (stats.counters.evicted_pages, stats.counters.reasked_pages) == (4, 1)
    assert stats.reask_gap_s == 10
