# SPDX-License-Identifier: Apache-2.0
import pytest

from kt_kvcache import KVStore, Removed, StaleHandle, StoreConfig, Stored, Tier
from kt_kvcache.events import EventStream


def named(space, tokens, kind=Stored):
    chain = space.chain(tokens)
    i = chain.num_pages - 1
    return kind(chain.page_hash(i), chain.parent_hash(i), Tier.MEMORY)


def test_a_stream_begins_with_what_is_cached_parents_first(space, store, fill):
    fill([1, 2, 3, 4]).release()
    events = store.events()
    assert events.poll() == [named(space, [1, 2]), named(space, [1, 2, 3, 4])]
    assert events.poll() == []


def test_a_stream_tells_what_is_published_evicted_and_dropped(space, store, fill):
    with store.events() as events:
        fill([1, 2, 3, 4]).release()
        assert events.poll() == [named(space, [1, 2]), named(space, [1, 2, 3, 4])]
        fill([1, 2]).release()  # present already
        space.reserve(space.chain([]), 0, 7).release()
        assert events.poll() == [named(space, [1, 2, 3, 4], Removed)]
        space.drop()
        assert events.poll() == [named(space, [1, 2], Removed)]


def test_a_dropped_page_that_is_still_held_is_told_once(space, store, fill):
    writer = fill([1, 2])
    with store.events() as events:
        events.poll()
        space.drop(space.chain([1, 2]))
        writer.release()
        assert events.poll() == [named(space, [1, 2], Removed)]


def test_a_full_stream_loses_the_newest_and_counts_them(space, store, fill):
    events, other = store.events(max_pending=2), store.events()
    fill([1, 2, 3, 4, 5, 6]).release()
    assert events.poll() == [named(space, [1, 2]), named(space, [1, 2, 3, 4])]
    assert (events.num_dropped, other.num_dropped, len(other.poll())) == (1, 0, 3)
    fill([7, 8]).release()
    assert events.poll() == [named(space, [7, 8])]
    assert events.num_dropped == 1


def test_a_closed_stream_hears_nothing_more(store, fill):
    events = store.events()
    events.close()
    events.close()
    fill([1, 2]).release()
    assert events.poll() == []


def test_bad_sizes_and_closed_stores_are_refused():
    store = KVStore.open(config=StoreConfig(1))
    with pytest.raises(ValueError, match=r"\[kvstore.events\] max_pending must .* >= 1; got 0"):
        store.events(max_pending=0)
    store.close()
    with pytest.raises(StaleHandle, match="the store must be open; got a closed one"):
        store.events()


def test_polling_returns_what_was_pushed():
    stream = EventStream(2)
    event = Stored(b"page", b"parent", Tier.DISK)
    stream.push([event])
    assert stream.poll() == [event]
