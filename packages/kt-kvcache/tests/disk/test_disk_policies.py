# SPDX-License-Identifier: Apache-2.0
"""What a store with a root keeps longest, and what it says of itself."""

from .known_pages import fill, loaded, space_of

TOKENS = list(range(80))  # 20 pages


def test_what_the_disk_does_is_measured(open_store):
    store = open_store(num_pages=8, disk_pages=16)
    space = space_of(store)
    for i in (1, 2, 3, 1):
        fill(space, [i] * 32)
        store.flush().result(30)
    disk = store.stats().disk
    assert disk.counters.evicted_pages >= disk.counters.reasked_pages > 0
    assert disk.reask_gap_s > 0
    assert 0 < disk.write_p50_s <= disk.write_p99_s
    assert (disk.read_p99_s, disk.reading_bytes, disk.writing_bytes) == (0, 0, 0)
    assert (disk.bad_slots, disk.mismatched_pages, disk.counters.degraded_ms) == (0, 0, 0)
    fill(space, [4] * 32)
    store.flush().result(30)  # what is being written cannot be evicted
    with space.acquire(space.chain([1] * 32)) as lease:
        assert lease.load().result(30).ok_tokens == 32
    disk, memory = store.stats().disk, store.stats().counters
    assert (disk.counters.hit_pages, disk.counters.hit_tokens) == (8, 32)
    assert 0 < disk.read_p50_s <= disk.read_p99_s
    assert (memory.acquires, memory.hit_tokens, memory.missed_pages) == (6, 0, 48)
    assert memory.acquire_ns > 0


def test_shares_hold_on_disk_too(open_store):
    store = open_store(num_pages=16, disk_pages=24, tenant_share=0.4)
    alice, bob = space_of(store), space_of(store, "bob")
    fill(bob, [7] * 32)
    for i in range(10):
        fill(alice, [i] * 32)
        assert store.flush().result(30)
    counters = store.stats().disk.counters
    assert counters.evicted_pages > 40
    assert counters.evicted_pages >= counters.quota_evicted_pages > 0
    assert bob.probe(bob.chain([7] * 32)).num_pages == 8
    assert loaded(bob, bob.chain([7] * 32)) == 32
    store.check_integrity()


def test_what_was_used_last_is_known_after_a_restart(open_store):
    with open_store(num_pages=16, disk_pages=24) as store:
        space = space_of(store)
        for i in (1, 2, 3):
            fill(space, [i] * 32)
            store.flush().result(30)
        assert store.stats().disk.num_pages == 24
        assert loaded(space, space.chain([1] * 32)) == 32  # from disk
    with open_store(num_pages=16, disk_pages=24) as store:
        space = space_of(store)
        fill(space, [4] * 32)
        assert store.flush().result(30)
        found = [space.probe(space.chain([i] * 32)).num_pages for i in (1, 2, 3, 4)]
        assert found[0] == found[3] == 8
        assert found[1] < found[2] or found[1] == 0
        store.check_integrity()


def test_times_of_use_that_cannot_be_are_no_reason_to_fail(open_store, root):
    with open_store() as store:
        fill(space_of(store), TOKENS)
    for path in root.glob("*.kvd"):
        raw = bytearray(path.read_bytes())
        raw[-64:] = bytes([0xFF]) * 64
        path.write_bytes(raw)
    with open_store() as store:
        space = space_of(store)
        assert loaded(space, space.chain(TOKENS)) == 80
        fill(space, [7] * 128)
        assert store.flush().result(30)
        store.check_integrity()
    space = space_of(open_store())
    assert loaded(space, space.chain([7] * 128)) == 128
