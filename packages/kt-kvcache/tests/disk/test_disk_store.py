# SPDX-License-Identifier: Apache-2.0
"""A store with a root, through its public calls: what survives, what loads, what a load may do."""

import asyncio
import gc
import os
import shutil
import threading
import time
import warnings
from concurrent.futures import Future

import pytest

from kt_kvcache import Completion, Extra, LoadResult, StaleHandle, Tier
from kt_kvcache.page_mover import ThreadPageMover

from .known_pages import PAGE_TOKENS, SLOT_BYTES, assert_right, content, fill, loaded, space_of

TOKENS = list(range(80))  # 20 pages


@pytest.mark.parametrize("io", ["auto", "threads", "uring"])
def test_pages_survive_a_restart(open_store, io):
    try:
        store = open_store(io=io)
    except (OSError, ValueError) as error:
        assert io == "uring"
        pytest.skip(str(error))
    with store:
        assert store.stats().disk.io in (("threads", "uring") if io == "auto" else (io,))
        chain = fill(space_of(store), TOKENS)
        assert store.flush().result(30)
        assert store.stats().disk.counters.written_pages == 20
    store = open_store()
    space = space_of(store)
    assert space.probe(space.chain(TOKENS)).num_tokens == 80
    with space.acquire(space.chain(TOKENS)) as lease:
        assert (lease.num_tokens, lease.num_loadable_tokens) == (0, 80)
        assert lease.load().result(30) == LoadResult(80, 20 * SLOT_BYTES, None)
        assert (lease.num_tokens, lease.num_loadable_tokens) == (80, 0)
        assert_right(lease, chain)
        assert store.stats().open_writers == 0
    store.check_integrity()
    assert loaded(space, chain) == 80  # from memory now
    assert store.stats().disk.counters.loaded_pages == 20


def test_what_is_in_memory_is_followed_by_what_is_on_disk(open_store):
    with open_store() as store:
        fill(space_of(store), TOKENS)
    space = space_of(open_store())
    chain = space.chain(TOKENS)
    loaded(space, space.chain(TOKENS[:20]))
    with space.acquire(chain, max_tokens=79) as lease:
        assert (lease.num_tokens, lease.num_loadable_tokens) == (20, 56)
        first_ids = lease.page_ids
        assert lease.load().result(30).ok_tokens == 56
        assert lease.page_ids[:5] == first_ids
        assert_right(lease, chain)


def test_only_the_same_tenant_and_identity_hit_after_a_restart(open_store):
    with open_store() as store:
        fill(space_of(store), TOKENS)
        fill(space_of(store, None), TOKENS[:40])
    store = open_store()
    for tenant, num_tokens in (("alice", 80), ("bob", 0), (None, 40), ("", 0)):
        space = space_of(store, tenant)
        assert loaded(space, space.chain(TOKENS)) == num_tokens


def test_extras_are_part_of_what_is_compared(open_store):
    cat, dog = [Extra(1, 7, b"cat" * 8)], [Extra(1, 7, b"dog" * 8)]
    with open_store() as store:
        space = space_of(store)
        chain = space.chain(TOKENS[:8], cat)
        with space.reserve(chain, 0, 2) as writer:
            for i in range(2):
                for layer in range(2):
                    writer.view().page(layer, i)[:] = content(chain.page_hash(i), layer)
            writer.commit(2, after=None)
    space = space_of(open_store())
    assert loaded(space, space.chain(TOKENS[:8], cat)) == 8
    assert loaded(space, space.chain(TOKENS[:8], dog)) == 0


def test_extras_too_long_for_a_record_stay_in_memory(open_store):
    store = open_store()
    space = space_of(store)
    chain = space.chain(TOKENS[:8], [Extra(5, 7, b"x" * 600)])
    with space.reserve(chain, 0, 2) as writer:
        writer.commit(2, after=None)
    assert not store.flush().result(30)
    counters = store.stats().disk.counters
    assert (counters.written_pages, counters.oversized_pages) == (1, 1)


def test_a_flush_promises_nothing_of_a_root_that_was_deleted(open_store, root):
    store = open_store()
    space = space_of(store)
    fill(space, TOKENS)
    assert store.flush().result(30)
    shutil.rmtree(root)
    fill(space, TOKENS[::-1])
    assert store.flush().result(30) is False
    assert store.stats().disk.counters.io_errors > 0
    loaded(space, space.chain(TOKENS))  # which checks what is still found
    store.check_integrity()


def test_a_page_is_written_once(open_store):
    store = open_store(num_pages=24)
    space = space_of(store)
    for _ in range(3):
        chain = fill(space, TOKENS)
        store.flush().result(30)
        fill(space, [99] * 96)  # evicts it from memory
        store.flush().result(30)
        assert loaded(space, chain) == 80
    assert store.stats().disk.counters.written_pages == 20 + 24


def commit_one_by_one(space, tokens: list[int]) -> None:
    """As a sequence that grows page by page does."""
    chain = space.chain(tokens)
    with space.reserve(chain, 0, chain.num_pages) as writer:
        for _ in range(chain.num_pages):
            writer.commit(1, after=None)


@pytest.fixture
def batches(open_store, monkeypatch):
    """A store that would gather for ever, and the numbers of pages that it wrote at once."""
    monkeypatch.setattr("kt_kvcache.disk.worker._GATHER_S", 3600.0)
    store, seen = open_store(num_pages=256), []  # 8 pages are a full batch
    write = store._disk._mover.write

    def counted(view, *args):
        seen.append(len(view.page_ids))
        return write(view, *args)

    monkeypatch.setattr(store._disk._mover, "write", counted)
    return store, seen


def test_commits_that_follow_each_other_are_written_together(batches):
    store, seen = batches
    space = space_of(store)
    commit_one_by_one(space, TOKENS[:16])
    commit_one_by_one(space, [9] * 12)
    assert seen == []
    assert store.flush().result(30)
    assert sorted(seen) == [3, 4]


def test_a_full_batch_waits_for_no_more_commits(batches):
    store, seen = batches
    commit_one_by_one(space_of(store), TOKENS[:32])
    wait_until(lambda: store.stats().disk.counters.written_pages == 8)
    assert sum(seen) == 8


def test_a_lone_commit_does_not_wait_for_long(open_store):
    store = open_store()
    commit_one_by_one(space_of(store), TOKENS[:4])
    wait_until(lambda: store.stats().disk.counters.written_pages == 1)


def busy(store) -> threading.Event:
    """Keeps the thread that writes from writing until the event is set."""
    go = threading.Event()
    store._disk._worker._call(lambda: go.wait(30), Completion(), None)
    return go


def test_pages_that_memory_needed_first_are_made_up_for_by_the_next_commit(open_store):
    store = open_store(num_pages=8)
    space = space_of(store)
    go = busy(store)
    fill(space, TOKENS[:12])
    fill(space, [9] * 32)  # takes all of memory
    go.set()
    assert not store.flush().result(30)
    assert store.stats().disk.counters.dropped_writes == 3
    fill(space, TOKENS[:16])
    assert store.flush().result(30)
    assert store.stats().disk.counters.written_pages == 8 + 4
    store.close()
    space = space_of(open_store())
    assert loaded(space, space.chain(TOKENS[:16])) == 16


def test_a_load_takes_what_memory_has_left(open_store):
    with open_store() as store:
        fill(space_of(store), TOKENS)
    store = open_store(num_pages=12)
    space = space_of(store)
    chain = space.chain(TOKENS)
    with space.reserve(space.chain([]), 0, 5), space.acquire(chain) as lease:
        assert lease.load().result(30) == LoadResult(28, 7 * SLOT_BYTES, "memory")
        assert_right(lease, chain)
        with space.acquire(chain) as second:
            assert second.num_loadable_tokens == 80 - 28
            assert second.load().result(30) == LoadResult(0, 0, "memory")
    store.check_integrity()
    assert store.stats().open_leases == 0


def test_a_load_without_a_hit_is_done(open_store):
    space = space_of(open_store())
    with space.acquire(space.chain(TOKENS)) as lease:
        load = lease.load()
        assert load.done()
        assert load.result() == LoadResult(0, 0, None)
        assert lease.load() is load


def test_part_of_a_page_is_loaded_and_copied(open_store):
    store = open_store()
    stored = fill(space_of(store), TOKENS[:12])
    store.close()
    store = open_store()
    space = space_of(store)
    chain = space.chain([*TOKENS[:6], 99, 99, 99])
    with space.acquire(chain, tail=True) as lease:
        assert (lease.tail, lease.num_loadable_tokens) == (None, 4 + 2)
        assert lease.load().result(30) == LoadResult(4, 2 * SLOT_BYTES, None)
        assert_right(lease, chain)
        assert (lease.num_tokens, lease.tail.num_tokens, lease.num_loadable_tokens) == (4, 2, 0)
        with space.reserve(chain, 1, 1) as writer:
            assert writer.copy_tail(lease) == 2
            assert (writer.view().page(1, 0) == content(stored.page_hash(1), 1)).all()
    with space.acquire(space.chain([*TOKENS[:7], 99]), tail=True) as lease:
        assert (lease.num_tokens, lease.tail.num_tokens, lease.num_loadable_tokens) == (4, 3, 0)
    # Limits are kept, and nothing is asked for twice or without need.
    with space.acquire(stored, 11, tail=True) as lease:
        assert (lease.num_tokens, lease.num_loadable_tokens) == (8, 3)
    with space.acquire(chain) as lease:
        assert lease.num_loadable_tokens == 0
    store.check_integrity()


def test_a_tail_on_disk_replaces_a_shorter_one_in_memory(open_store):
    store = open_store()
    fill(space_of(store), TOKENS[:4])
    store.close()
    store = open_store()
    space = space_of(store)
    fill(space, [*TOKENS[:1], 50, 50, 50])
    store.flush(durable=False).result(30)  # what is being written is pinned
    with space.acquire(space.chain([*TOKENS[:3], 99]), tail=True) as lease:
        assert (lease.tail.num_tokens, lease.num_loadable_tokens) == (1, 3)
        assert lease.load().result(30).ok_tokens == 0
        assert (lease.page_ids, lease.tail.num_tokens) == ((), 3)
        assert store.stats().pinned_pages == 1
    with space.acquire(space.chain([*TOKENS[:1], 99, 99, 99]), tail=True) as lease:
        assert (lease.tail.num_tokens, lease.num_loadable_tokens) == (1, 0)
    store.check_integrity()


def test_a_tail_that_memory_has_no_page_for_is_done_without(open_store):
    store = open_store()
    fill(space_of(store), TOKENS[:12])
    store.close()
    store = open_store()
    space = space_of(store)
    with space.reserve(space.chain([]), 0, 31):
        lease = space.acquire(space.chain([*TOKENS[:6], 99, 99]), tail=True)
        assert lease.load().result(30) == LoadResult(4, SLOT_BYTES, "memory")
        assert (lease.num_tokens, lease.tail) == (4, None)
        lease.release()
    store.check_integrity()


def test_a_load_can_be_awaited_and_called_back(open_store):
    with open_store() as store:
        fill(space_of(store), TOKENS)
    space = space_of(open_store())

    async def run() -> LoadResult:
        with space.acquire(space.chain(TOKENS)) as lease:
            return await lease.load(deadline=30)

    assert asyncio.run(run()).ok_tokens == 80
    seen = []
    with space.acquire(space.chain([5] * 8)) as lease:
        lease.load().add_done_callback(lambda load: seen.append(load.result().ok_tokens))
    assert seen == [0]


@pytest.fixture
def slow_store(open_store, monkeypatch):
    """A store with TOKENS on disk only, and the event that its reads wait for."""
    monkeypatch.setattr("kt_kvcache.load._BATCH_BYTES", 4 * SLOT_BYTES)
    with open_store() as store:
        fill(space_of(store), TOKENS)
    store, go = open_store(), threading.Event()

    def preadv(*args):
        go.wait(30)
        return os.preadv(*args)

    store._disk._mover.close()
    store._disk._mover = ThreadPageMover(preadv=preadv)
    yield store, go
    go.set()


def test_a_deadline_beyond_what_a_timer_takes_is_none(open_store):
    with open_store() as store:
        fill(space_of(store), TOKENS)
        assert store.flush(timeout=float("inf")).result(30)
    space = space_of(open_store())
    for num_tokens, deadline in ((20, float("inf")), (40, 1e300)):
        with space.acquire(space.chain(TOKENS[:num_tokens])) as lease:
            assert lease.load(deadline=deadline).result(30).ok_tokens == 20


def test_a_deadline_is_kept_whatever_the_drive_does(slow_store):
    store, go = slow_store
    space = space_of(store)
    chain = space.chain(TOKENS)
    with space.acquire(chain) as lease:
        start = time.monotonic()
        result = lease.load(deadline=0.1).result(10)
        assert result == LoadResult(0, 0, "deadline")
        assert time.monotonic() - start < 2
        assert lease.num_tokens == 0
        assert store.stats().reserved_pages == 20  # the reads still use them
    go.set()
    wait_until(lambda: store.stats().reserved_pages == 0)
    store.check_integrity()
    assert store.stats().disk.counters.missed_deadlines == 1
    assert loaded(space, chain) == 80


def test_cancelling_and_releasing_detach_a_load(slow_store):
    store, go = slow_store
    space = space_of(store)
    chain = space.chain(TOKENS)
    cancelled = space.acquire(chain)
    load = cancelled.load()
    assert load.cancel()
    assert load.result(0) == LoadResult(0, 0, "cancelled")
    assert not load.cancel()
    released = space.acquire(chain)
    released.load()
    for lease in (cancelled, released):
        lease.release()
    go.set()
    wait_until(lambda: store.stats().reserved_pages == 0)
    store.check_integrity()
    assert store.stats().open_leases == 0
    assert loaded(space, chain) == 80


def test_loads_of_one_prefix_read_it_once(slow_store):
    store, go = slow_store
    space = space_of(store)
    chain = space.chain(TOKENS)
    forked = space.chain([*TOKENS[:60], 99, 99, 99, 99])
    leases = [space.acquire(chain), space.acquire(chain), space.acquire(forked)]
    loads = [lease.load() for lease in leases]
    assert store.stats().reserved_pages == 20  # one load's
    go.set()
    assert [load.result(30).ok_tokens for load in loads] == [80, 80, 60]
    for lease, its in zip(leases, (chain, chain, forked), strict=True):
        assert_right(lease, its)
    counters = store.stats().disk.counters
    assert (counters.loaded_pages, counters.shared_pages) == (20, 20 + 15)
    for lease in leases:
        lease.release()
    store.check_integrity()
    assert (store.stats().pinned_pages, store.stats().disk.evictable_pages) == (0, 20)


@pytest.mark.parametrize("end", ["cancel", "release", "deadline"])
def test_a_load_outlives_the_one_that_it_waits_for(slow_store, end):
    store, go = slow_store
    space = space_of(store)
    chain = space.chain(TOKENS)
    first, second = space.acquire(chain), space.acquire(chain)
    ahead = first.load(0.05 if end == "deadline" else None)
    load = second.load()
    if end == "cancel":
        assert ahead.cancel()
    elif end == "release":
        first.release()
    else:
        assert ahead.result(10).reason == "deadline"
    assert not load.done()
    go.set()
    result = load.result(30)
    # Slots of a load that was given up come back when its reads have ended.
    assert result == LoadResult(80, 20 * SLOT_BYTES, None) or result.reason == "memory"
    assert_right(second, chain)
    first.release()
    second.release()
    wait_until(lambda: store.stats().reserved_pages == 0)
    store.check_integrity()


def test_a_waiting_load_keeps_its_own_deadline(slow_store):
    store, go = slow_store
    space = space_of(store)
    chain = space.chain(TOKENS)
    first, second = space.acquire(chain), space.acquire(chain)
    load = first.load()
    assert second.load(deadline=0.05).result(10) == LoadResult(0, 0, "deadline")
    second.release()
    go.set()
    assert load.result(30).ok_tokens == 80
    first.release()
    store.check_integrity()


def test_what_fails_for_one_load_is_looked_for_again_by_the_next(slow_store, root):
    store, go = slow_store
    space = space_of(store)
    chain = space.chain(TOKENS)
    slots = next(root.glob("*.kvs"))
    with slots.open("r+b") as file:
        file.seek(3 * SLOT_BYTES)
        file.write(bytes(512))
    leases = [space.acquire(chain), space.acquire(chain)]
    loads = [lease.load() for lease in leases]
    go.set()
    results = [load.result(30).ok_tokens for load in loads]
    assert 80 > results[0] == results[1]
    assert store.stats().disk.counters.checksum_misses <= 2
    for lease in leases:
        assert_right(lease, chain)
        lease.release()
    store.check_integrity()


def test_a_leaked_lease_gives_its_pages_on_disk_back(open_store):
    with open_store() as store:
        fill(space_of(store), TOKENS)
    store = open_store()
    space = space_of(store)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        space.acquire(space.chain(TOKENS))
        gc.collect()
    space.acquire(space.chain([1])).release()
    assert store.stats().open_leases == 0
    assert store.stats().disk.evictable_pages == 20


def test_drop_is_for_good(open_store):
    with open_store() as store:
        space = space_of(store)
        fill(space, TOKENS)
        fill(space, [*TOKENS[:40], *[7] * 8])
        other = space_of(store, "bob")
        fill(other, TOKENS[:8])
        store.flush().result(30)
        assert space.drop(space.chain(TOKENS[:44])) == 10
        assert loaded(space, space.chain(TOKENS)) == 40
    with open_store() as store:
        space = space_of(store)
        assert loaded(space, space.chain(TOKENS)) == 40
        assert loaded(space, space.chain([*TOKENS[:40], *[7] * 8])) == 48
        assert space.drop() == 12
        with pytest.raises(StaleHandle):
            space.acquire(space.chain(TOKENS))
        space = space_of(store)
        assert loaded(space, space.chain(TOKENS)) == 0
    store = open_store()
    for tenant, num_tokens in (("alice", 0), ("bob", 8)):
        space = space_of(store, tenant)
        assert loaded(space, space.chain(TOKENS)) == num_tokens


def test_a_dropped_page_does_not_come_back_by_a_running_load(slow_store):
    store, go = slow_store
    space = space_of(store)
    chain = space.chain(TOKENS)
    with space.acquire(chain) as lease:
        load = lease.load()
        assert space.drop(space.chain(TOKENS[:4])) == 20
        go.set()
        assert load.result(30) == LoadResult(0, 0, "dropped")
    assert loaded(space, chain) == 0


def test_the_least_used_leaves_give_way_within_the_budget(open_store, root):
    store = open_store(num_pages=16, disk_pages=24)
    space = space_of(store)
    for i in range(10):
        fill(space, [i] * 32)
        store.flush().result(30)
        used = sum(path.stat().st_size for path in root.glob("*.kv[ds]"))
        assert used <= store.stats().disk.budget_bytes
    stats = store.stats().disk
    assert stats.num_pages + stats.free_slots <= 24
    assert stats.counters.evicted_pages == 80 - stats.num_pages
    store.close()
    space = space_of(open_store(num_pages=16, disk_pages=24))
    hits = [loaded(space, space.chain([i] * 32)) for i in range(10)]
    assert hits[-2:] == [32, 32]
    assert hits[:6] == [0] * 6


def test_a_forked_child_finds_nothing(open_store):
    store = open_store()
    space = space_of(store)
    chain = fill(space, TOKENS)
    store.flush().result(30)
    child = os.fork()
    if not child:
        failed = 1
        try:
            assert store._disk.find(space.ns_key, chain, 0, 80, None) is None
            assert space.probe(chain).by_tier[Tier.DISK] == 0
            assert store.flush().result(10) is False
            with pytest.raises(ValueError, match=r"must be dropped by .*; got a fork"):
                space.drop(chain)
            store.close()
            failed = 0
        finally:
            os._exit(failed)
    assert os.waitpid(child, 0)[1] == 0
    assert loaded(space, chain) == 80


def test_flush_of_a_busy_store_says_so_in_time(open_store):
    store = open_store()
    go = busy(store)
    assert store.flush(timeout=0.05).result(10) is False
    go.set()
    assert store.flush(timeout=30).result(30) is True


def test_a_flush_waits_for_what_was_offered_before_it_while_writes_go_on(open_store, monkeypatch):
    store = open_store()
    space = space_of(store)
    mover, asked = store._disk._mover, []
    write = mover.write

    def hold(*args):
        asked.append((Future(), args))
        return asked[-1][0]

    def arrive(i):
        future, args = asked[i]
        future.set_result(write(*args).result(30))

    monkeypatch.setattr(mover, "write", hold)
    fill(space, [1] * PAGE_TOKENS)
    wait_until(lambda: len(asked) == 1)
    flushed = store.flush(durable=False)
    fill(space, [2] * PAGE_TOKENS)
    wait_until(lambda: len(asked) == 2)  # although nothing has arrived
    arrive(1)
    assert not flushed.done()
    arrive(0)
    assert flushed.result(30) is True
    assert store.flush(durable=False).result(30) is True
    assert store.stats().disk.counters.written_pages == 2


def wait_until(holds, timeout=30):
    give_up = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def test_bytes_in_flight_are_seen(slow_store):
    store, go = slow_store
    space = space_of(store)
    with space.acquire(space.chain(TOKENS)) as lease:
        load = lease.load()
        assert store.stats().disk.reading_bytes == 20 * SLOT_BYTES
        go.set()
        load.result(30)
    assert store.stats().disk.reading_bytes == 0
