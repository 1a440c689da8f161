# SPDX-License-Identifier: Apache-2.0
import random
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from kt_kvcache import Arena, Geometry, Group, KVStore, OutOfPages, StaleHandle, StoreConfig


def test_a_root_needs_an_arena_and_a_budget(tmp_path):
    config = StoreConfig(8, 2, disk_bytes=1 << 20)
    with pytest.raises(ValueError, match="got no arena, disk_bytes=1048576"):
        KVStore.open(tmp_path, config=config)
    with pytest.raises(ValueError, match="got an arena, disk_bytes=0"):
        KVStore.open(tmp_path, config=StoreConfig(8, 2), arena=Arena.allocate(8, (8,)))


@pytest.mark.parametrize("fields", [(0, 64), (1, 0), ("8", 64)])
def test_sizes_must_be_positive(fields):
    with pytest.raises(ValueError, match=r"\[kvstore.config\] \w+ must be an integer >= 1; got"):
        StoreConfig(*fields)


@pytest.mark.parametrize("value", [None, "5", float("nan"), 0, 10**400])
@pytest.mark.parametrize("name", ["durability_s", "tenant_share"])
def test_what_is_no_number_of_its_range_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"\[kvstore.config\] {name} must be .*; got "):
        StoreConfig(1, **{name: value})


def test_arguments_of_other_types_are_named(store, identity, geometry):
    for call, message in (
        (lambda: KVStore.open(config={}), "config must be a StoreConfig; got dict"),
        (lambda: KVStore.open(config=StoreConfig(4), arena=[]), "arena must be an Arena; got list"),
        (lambda: store.space("m", geometry), "identity must be an Identity; got str"),
        (lambda: store.space(identity, None), "geometry must be a Geometry; got None"),
        (lambda: store.space(identity, geometry, 7), "tenant must be a str; got int"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("value", [-1, float("nan"), "5", True, 10**400])
def test_seconds_that_are_none_are_refused_with_and_without_a_disk(value, space, store):
    with pytest.raises(ValueError, match=r"\[kvstore.flush\] timeout must be seconds >= 0; got"):
        store.flush(timeout=value)
    lease = space.acquire(space.chain([1, 2]))
    with pytest.raises(ValueError, match=r"\[kvstore.load\] deadline must be seconds >= 0; got"):
        lease.load(deadline=value)
    lease.release()


def test_an_arena_of_another_size_is_refused():
    with pytest.raises(ValueError, match="arena must have 2 pages; got 3"):
        KVStore.open(config=StoreConfig(2), arena=Arena.allocate(3, [1]))


def test_a_geometry_must_fit_pages_and_arena(store, identity, geometry):
    with pytest.raises(ValueError, match="must have 2 tokens per page; got 4"):
        store.space(identity, replace(geometry, page_tokens=4))
    with pytest.raises(ValueError, match=r"arena's layers, \(8, 8\); got \(8, 8, 8\)"):
        store.space(identity, Geometry(2, (Group("kv", 3, 8),)))
    with pytest.raises(ValueError, match=r"got \(8, 4\)"):
        store.space(identity, Geometry(2, (Group("k", 1, 8), Group("v", 1, 4))))
    halves = Geometry(2, (Group("k", 1, 8), Group("v", 1, 8)))
    assert store.space(identity, halves).page_tokens == 2


def test_tenants_of_two_stores_have_different_keys(identity, geometry):
    config = StoreConfig(1, 2)
    with KVStore.open(config=config) as one, KVStore.open(config=config) as two:
        keys = {s.space(identity, geometry, tenant="alice").ns_key for s in (one, two)}
        assert len(keys) == 2
        keys = {s.space(identity, geometry).ns_key for s in (one, two)}
        assert len(keys) == 1


def test_a_closed_store_refuses_all_but_close(identity, geometry):
    store = KVStore.open(config=StoreConfig(4, 2))
    space = store.space(identity, geometry)
    chain = space.chain([1, 2])
    store.close()
    store.close()
    for call in (
        store.stats,
        store.check_integrity,
        lambda: store.space(identity, geometry),
        lambda: space.probe(chain),
        lambda: space.acquire(chain),
        lambda: space.reserve(chain, 0, 1),
        space.drop,
    ):
        with pytest.raises(StaleHandle, match="the store must be open; got a closed one"):
            call()


def test_stats_follow_a_request(store, space):
    chain = space.chain([1, 2, 3, 4, 5])
    lease = space.acquire(chain)
    writer = space.reserve(chain, 0, 3)
    stats = store.stats()
    assert (stats.free_pages, stats.reserved_pages) == (5, 3)
    assert (stats.open_leases, stats.open_writers) == (1, 1)
    assert (stats.counters.hit_pages, stats.counters.missed_pages) == (0, 2)
    writer.commit(2, after=None)
    stats = store.stats()
    assert (stats.free_pages, stats.reserved_pages, stats.pinned_pages) == (5, 1, 2)
    lease.release()
    writer.release()
    stats = store.stats()
    assert (stats.free_pages, stats.cached_pages, stats.pinned_pages) == (6, 2, 0)
    assert (stats.open_leases, stats.open_writers) == (0, 0)
    space.acquire(chain).release()
    space.drop()
    counters = store.stats().counters
    assert (counters.hit_pages, counters.published_pages, counters.dropped_pages) == (2, 2, 2)


@pytest.fixture
def many_thread_switches():
    """Makes threads take turns every few bytecodes, so that missing locks show."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("many_thread_switches")
def test_threads_never_see_each_others_bytes(identity, geometry):
    num_pages, num_threads, num_requests = 24, 4, 150
    arena = Arena.allocate(num_pages, [8, 8])
    store = KVStore.open(config=StoreConfig(num_pages, 2), arena=arena)
    spaces = [store.space(identity, geometry, tenant=tenant) for tenant in ("a", "b")]
    failures, refusals = [], []
    start = threading.Barrier(num_threads)

    def expected(chain, i):
        return np.frombuffer(chain.page_hash(i)[:8], np.uint8)

    def serve(seed):
        rng = random.Random(seed)
        start.wait()
        for _ in range(num_requests):
            space = rng.choice(spaces)
            chain = space.chain([rng.randrange(2) for _ in range(2 * rng.randint(1, 6))])
            with space.acquire(chain) as lease:
                n = chain.num_pages - lease.num_pages
                try:
                    writer = space.reserve(chain, lease.num_pages, n + 1)
                except OutOfPages:
                    refusals.append(seed)
                    continue
                with writer:
                    for i in range(n):
                        for layer in range(2):
                            page = writer.view().page(layer, i)
                            page[:] = 0xEE
                            page[:] = expected(chain, lease.num_pages + i)
                    writer.commit(n, after=None)
                    with space.acquire(chain) as mine:
                        view = mine.view()
                        wrong = [
                            (seed, i, layer)
                            for i in range(mine.num_pages)
                            for layer in range(2)
                            if (view.page(layer, i) != expected(chain, i)).any()
                        ]
                        failures.extend(wrong)
                        if mine.num_pages != chain.num_pages:
                            failures.append((seed, "own pages not found"))

    def guarded(seed):
        try:
            serve(seed)
        except BaseException as error:
            failures.append((seed, repr(error)))

    threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    store.check_integrity()
    stats = store.stats()
    assert stats.free_pages + stats.cached_pages == num_pages
    assert stats.counters.evicted_pages > 0
    assert stats.counters.hit_pages > 0
    assert len(refusals) < num_threads * num_requests / 4
    store.close()
