# SPDX-License-Identifier: Apache-2.0
"""Which pages reach the drive, when, and in which order."""

import time

import pytest

from kt_kvcache import Completion, StoreConfig
from kt_kvcache.disk.write_policy import Offer, by_chain
from kt_kvcache.page import CachedPage

from .known_pages import fill, loaded, space_of
from .sim_store import look


def page(parent=None):
    return CachedPage(b"", parent, b"", 0)


def on_disk(store, tokens) -> int:
    space = space_of(store)
    return store._disk.count(space.ns_key, space.chain(tokens))


def use(store, tokens) -> None:
    space = space_of(store)
    space.acquire(space.chain(tokens)).release()


def test_offers_are_written_in_order_of_arrival_each_chain_once():
    root, a, b = page(), [], []
    for chain in (a, b):
        chain.append(page(root))
        chain.append(page(chain[-1]))
        chain.append(page(chain[-1]))
    lone = page(root)
    offers = [Offer(a[0], 1), Offer(b[1], 2), Offer(lone, 1), Offer(a[2], 2), Offer(b[2], 1)]
    assert by_chain(offers) == [Offer(a[2], 3), Offer(b[2], 3), Offer(lone, 1)]
    branch = page(a[0])
    assert by_chain([Offer(a[0], 1), Offer(a[1], 1), Offer(branch, 1)]) == [
        Offer(a[1], 2),
        Offer(branch, 1),
    ]


def test_the_prompt_that_waits_longest_is_written_first(open_store, monkeypatch):
    monkeypatch.setattr("kt_kvcache.disk.worker._GATHER_S", 3600.0)
    store = open_store(num_pages=64)
    space, seen = space_of(store), []
    send = store._disk._worker.flights.send
    monkeypatch.setattr(
        store._disk._worker.flights, "send", lambda offer: (seen.append(offer.tail), send(offer))
    )
    chains = [fill(space, [i] * 8) for i in (1, 2, 3)]
    assert store.flush().result(30)
    assert [tail.hash for tail in seen] == [chain.page_hash(1) for chain in chains]


def test_of_a_chain_whose_end_has_gone_the_rest_is_written(open_store, monkeypatch):
    monkeypatch.setattr("kt_kvcache.disk.worker._GATHER_S", 3600.0)
    store = open_store(num_pages=8)
    space = space_of(store)
    fill(space, [1] * 16)
    with space.acquire(space.chain([1] * 12)), space.reserve(space.chain([]), 0, 5):
        pass  # takes the last page of the four
    assert not store.flush().result(30)
    counters = store.stats().disk.counters
    assert (counters.written_pages, counters.dropped_writes) == (3, 1)


def test_selective_writes_what_was_used_often_enough(open_store):
    with open_store(write_policy="selective", write_uses=3) as store:
        fill(space_of(store), [1] * 16)
        fill(space_of(store), [2] * 16)
        assert store.flush().result(30)
        assert store.stats().disk.num_pages == 0
        use(store, [1] * 8)
        assert store.flush().result(30)
        assert on_disk(store, [1] * 16) == 0
        use(store, [1] * 16)
        assert store.flush().result(30)
        assert on_disk(store, [1] * 16) == 2  # of the rest only two sequences knew
        assert on_disk(store, [2] * 16) == 0
    store = open_store()
    assert loaded(space_of(store), space_of(store).chain([1] * 16)) == 8
    assert store.stats().disk.num_pages == 2


def test_selective_needs_no_flush_and_remembers_what_memory_forgot(open_store):
    store = open_store(num_pages=8, write_policy="selective")
    space = space_of(store)
    fill(space, [1] * 16)
    use(store, [1] * 8)
    look(store)  # what happens every second
    assert on_disk(store, [1] * 16) == 2
    for tokens in ([2] * 32, [1] * 16, [2] * 32):  # each takes what it needs from the one before
        fill(space, tokens)
        store.flush().result(30)
    assert on_disk(store, [2] * 32) == 8


def test_back_writes_before_memory_evicts_and_at_the_end(open_store):
    with open_store(num_pages=32, write_policy="back") as store:
        space = space_of(store)
        for i in range(5):
            fill(space, [i] * 16)
            look_again(store)
        assert store.stats().disk.num_pages == 0
        assert store.stats().disk.unwritten_pages == 20
        for i in range(5, 13):
            fill(space, [i] * 16)
            look_again(store)
        disk = store.stats().disk
        assert disk.num_pages > 0
        assert disk.unwritten_pages == 13 * 4 - disk.num_pages > 0
        assert disk.counters.dropped_writes == 0
        assert on_disk(store, [0] * 16) == 4
        assert on_disk(store, [12] * 16) == 0
    store = open_store()
    assert store.stats().disk.num_pages == 13 * 4  # closing wrote the rest
    space = space_of(store)
    assert all(loaded(space, space.chain([i] * 16)) == 16 for i in range(13))


def look_again(store) -> None:
    """Has the thread that writes take its offers and write what is due; it flushes nothing."""
    done: Completion[None] = Completion()
    store._disk._worker._call(lambda: done.settle(None), done, None)
    done.result(30)
    while store.stats().disk.writing_bytes:
        time.sleep(0.001)


def test_back_writes_all_at_a_flush(open_store):
    store = open_store(write_policy="back")
    chain = fill(space_of(store), [1] * 16)
    fill(space_of(store), [*[1] * 16, *[2] * 8])
    assert store.flush().result(30)
    disk = store.stats().disk
    assert (disk.num_pages, disk.unwritten_pages) == (6, 0)
    assert on_disk(store, [1] * 16) == chain.num_pages


def test_what_was_dropped_before_it_was_written_is_not_lost(open_store):
    store = open_store(write_policy="back")
    alice, bob = space_of(store), space_of(store, "bob")
    fill(alice, [1] * 16)
    fill(alice, [2] * 16)
    fill(bob, [3] * 16)
    alice.drop(alice.chain([1] * 12))
    bob.drop()
    assert store.stats().disk.unwritten_pages == 2 + 4
    assert store.flush().result(30)
    disk = store.stats().disk
    assert (disk.num_pages, disk.unwritten_pages, disk.counters.dropped_writes) == (6, 0, 0)
    assert [on_disk(store, [i] * 16) for i in (1, 2)] == [2, 4]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"write_policy": "sometimes"}, "write_policy must be one of"),
        ({"write_uses": 0}, "write_uses must be"),
        ({"daily_write_bytes": -1}, "daily_write_bytes must be"),
        ({"read_bytes_per_s": -1}, "read_bytes_per_s must be"),
        ({"write_bytes_per_s": 0.5}, "write_bytes_per_s must be"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(ValueError, match=message):
        StoreConfig(8, **setting)
