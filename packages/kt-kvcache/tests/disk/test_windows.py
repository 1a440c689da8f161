# SPDX-License-Identifier: Apache-2.0
"""Loads with window groups: which bytes are read, and that no others are relied upon."""

import pytest

from kt_kvcache import Geometry, Group, KVStore, PageState, StoreConfig, Tier, WindowGroup

from . import known_pages
from .windowed_pages import (
    GEOMETRY,
    HEAD_BYTES,
    PAGE_TOKENS,
    POISON,
    SLOT_BYTES,
    STRIDES,
    WHOLE_PAGES,
    assert_right,
    content,
    fill,
    loaded,
    poisoned_arena,
)

TOKENS = list(range(40))  # 10 pages


@pytest.fixture
def open_store(tmp_path):
    stores = []

    def open_store(num_pages=32):
        config = StoreConfig(num_pages, PAGE_TOKENS, disk_bytes=16 << 20, min_free_bytes=0)
        stores.append(
            KVStore.open(tmp_path / "root", config=config, arena=poisoned_arena(num_pages))
        )
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def space_of(store, geometry=GEOMETRY):
    return store.space(known_pages.IDENTITY, geometry)


@pytest.fixture
def restarted(open_store):
    """A store that has `TOKENS` on disk and nothing in memory."""
    store = open_store()
    fill(space_of(store), TOKENS)
    assert store.flush().result(30)
    store.close()
    return open_store()


def test_only_heads_are_read_before_the_window(restarted):
    space = space_of(restarted)
    chain = space.chain(TOKENS)
    with space.acquire(chain) as lease:
        result = lease.load().result(30)
        assert (result.ok_tokens, result.reason) == (40, None)
        assert_right(lease, chain)
        num_bytes = 7 * HEAD_BYTES + WHOLE_PAGES * SLOT_BYTES
        assert result.num_bytes == restarted.stats().disk.counters.loaded_bytes == num_bytes
        view = lease.view()
        assert all((view.page(2, i) == POISON).all() for i in range(7))
    assert loaded(space, chain) == 40
    assert restarted.stats().disk.counters.loaded_bytes == num_bytes  # from memory this time
    restarted.check_integrity()


@pytest.mark.parametrize("num_pages", range(1, 10))
def test_a_shorter_prefix_is_completed_from_disk(restarted, num_pages):
    space = space_of(restarted)
    assert loaded(space, space.chain(TOKENS)) == 40
    before = restarted.stats().disk.counters.loaded_bytes
    chain = space.chain(TOKENS[: 4 * num_pages])
    with space.acquire(chain) as lease:
        assert lease.num_tokens == 0  # of the first seven pages, none is whole
        assert lease.num_loadable_tokens == 4 * num_pages
        assert lease.load().result(30).ok_tokens == 4 * num_pages
        assert_right(lease, chain)
    # Read again is only what must be whole.
    loaded_bytes = restarted.stats().disk.counters.loaded_bytes - before
    assert loaded_bytes == min(WHOLE_PAGES, num_pages) * SLOT_BYTES
    # And it is whole now.
    with space.acquire(chain) as lease:
        assert lease.num_tokens == 4 * num_pages
        assert_right(lease, chain)
    restarted.check_integrity()


def test_a_head_is_completed_while_others_hold_it(restarted):
    space = space_of(restarted)
    chain, shorter = space.chain(TOKENS), space.chain(TOKENS[:20])
    with space.acquire(chain) as lease:
        assert lease.load().result(30).ok_tokens == 40
        assert loaded(space, shorter) == 20
        assert_right(lease, chain)
        with space.acquire(shorter) as other:
            assert other.page_ids == lease.page_ids[:5]
    assert restarted.stats().reserved_pages == 0


def test_prefixes_of_all_lengths_load_at_once(restarted):
    space = space_of(restarted)
    chains = [space.chain(TOKENS[: 4 * num_pages]) for num_pages in (10, 2, 7, 5, 9, 10)]
    leases = [space.acquire(chain) for chain in chains]
    loads = [lease.load() for lease in leases]
    for lease, load, chain in zip(leases, loads, chains, strict=True):
        result = load.result(30)
        assert result.reason in (None, "memory", "window")
        assert_right(lease, chain)
    assert leases[0].num_tokens == 40
    for lease in leases:
        lease.release()
    for chain in chains:
        assert loaded(space, chain) == chain.num_tokens
    restarted.check_integrity()


def test_without_the_disk_a_shorter_prefix_is_a_smaller_hit(restarted):
    space = space_of(restarted)
    chain = space.chain(TOKENS)
    assert loaded(space, chain) == 40
    restarted._disk.drop(space.ns_key, None).result(30)
    assert space.probe(space.chain(TOKENS[:36])).num_tokens == 0
    assert space.probe(chain).num_tokens == 40
    assert loaded(space, space.chain(TOKENS[:36])) == 0
    assert loaded(space, chain) == 40


def test_a_writer_makes_heads_whole(restarted):
    space = space_of(restarted)
    assert loaded(space, space.chain(TOKENS)) == 40
    restarted._disk.drop(space.ns_key, None).result(30)
    chain = space.chain(TOKENS[:24])
    with space.reserve(chain, 0, 6) as writer:
        for i in range(6):
            for layer in range(len(STRIDES)):
                writer.view().page(layer, i)[:] = content(chain.page_hash(i), layer)
        assert writer.commit(6, after=None) == (PageState.PRESENT,) * 6
    for num_pages in range(1, 7):
        with space.acquire(chain, max_tokens=4 * num_pages) as lease:
            assert lease.num_pages == num_pages
            assert_right(lease, chain)


def test_heads_are_never_written_to_disk(restarted):
    space = space_of(restarted)
    assert loaded(space, space.chain(TOKENS)) == 40
    restarted._disk.drop(space.ns_key, None).result(30)
    fill(space, [*TOKENS, *range(100, 120)])
    assert restarted.flush().result(30) is False
    counters = restarted.stats().disk.counters
    assert (counters.written_pages, counters.dropped_writes) == (0, 15)
    assert counters.oversized_pages == 0


def test_they_are_found_again_after_a_restart(restarted, open_store):
    space = space_of(restarted)
    assert loaded(space, space.chain(TOKENS)) == 40
    longer = fill(space, [*TOKENS, *range(100, 120)])
    assert restarted.flush().result(30)
    restarted.close()
    store = open_store()
    for num_pages in (15, 3, 12, 7):
        chain = space_of(store).chain([*TOKENS, *range(100, 120)][: 4 * num_pages])
        assert loaded(space_of(store), chain) == 4 * num_pages
    assert longer.num_pages == 15


@pytest.mark.parametrize("num_common", [21, 22, 23])
def test_a_tail_has_its_window(restarted, num_common):
    space = space_of(restarted)
    chain = space.chain([*TOKENS[:num_common], *[99] * 8])
    for in_memory in (False, True):
        with space.acquire(chain, tail=True) as lease:
            if in_memory:
                assert (lease.num_loadable_tokens, lease.num_tokens) == (0, 20)
            lease.load().result(30)
            assert (lease.num_tokens, lease.tail.num_tokens) == (20, num_common - 20)
            assert_right(lease, chain)
            stored = space.chain(TOKENS)
            assert (lease.tail_view().page(2, 0) == content(stored.page_hash(5), 2)).all()


def test_a_head_is_nobodys_tail(restarted):
    space = space_of(restarted)
    assert loaded(space, space.chain(TOKENS)) == 40
    assert loaded(space, space.chain(TOKENS[:12])) == 12
    restarted._disk.drop(space.ns_key, None).result(30)
    with space.acquire(space.chain([*TOKENS[:14], 99, 99]), tail=True) as lease:
        assert (lease.num_tokens, lease.tail) == (12, None)


def test_a_load_that_ends_early_grants_nothing_that_lacks_its_window(restarted):
    space = space_of(restarted)
    chain = space.chain(TOKENS)
    pages = restarted._disk._pages
    page = pages._index.by_hash[chain.page_hash(8)]
    segment, slot = pages.locate(page.page_id)
    segment.sums[slot] ^= 1
    with space.acquire(chain) as lease:
        result = lease.load().result(30)
        assert (result.ok_tokens, result.num_bytes, result.reason) == (0, 0, "failed")
        assert lease.num_tokens == 0
    # What was read is there still: the next one completes it.
    assert loaded(space, chain) == 32
    assert restarted.stats().reserved_pages == 0


def test_groups_that_share_an_extent_are_moved_whole(open_store):
    windows = [WindowGroup(str(layer), 1, STRIDES[layer], 6) for layer in (1, 2)]
    straddling = Geometry(PAGE_TOKENS, (Group("full", 1, STRIDES[0]), *windows))
    store = open_store()
    chain = fill(space_of(store, straddling), TOKENS)
    assert store.flush().result(30)
    store.close()
    store = open_store()
    space = space_of(store, straddling)
    assert loaded(space, chain) == 40
    assert store.stats().disk.counters.loaded_bytes == 10 * SLOT_BYTES


def test_probe_says_what_a_load_would_move(restarted):
    space = space_of(restarted)
    chain = space.chain(TOKENS)
    hit = space.probe(chain)
    assert hit.by_tier == {Tier.MEMORY: 0, Tier.DISK: 10}
    assert hit.num_bytes == 7 * HEAD_BYTES + WHOLE_PAGES * SLOT_BYTES
    assert hit.eta_s == pytest.approx(hit.num_bytes / 1e9)  # nothing was measured yet
    assert loaded(space, chain) == 40
    there = space.probe(chain)
    assert (there.num_bytes, there.eta_s) == (0, 0.0)
    restarted._disk.read_rate.add(10**12, 1000.0)
    assert space.probe(space.chain(TOKENS[:20])).eta_s > 0
