# SPDX-License-Identifier: Apache-2.0
"""Several processes on one root: simulated ones, each with its own open files and locks."""

import pytest

from .known_pages import crowd_out, fill, loaded, space_of
from .sim_files import SimDisk, SimFiles
from .sim_store import look, sim_store

A, B, C = ([i] * 20 for i in range(3))


@pytest.fixture
def disk():
    return SimDisk()


@pytest.fixture
def opened(disk):
    stores = []

    def opened(**sizes):
        stores.append(sim_store(SimFiles(disk), **sizes))
        return stores[-1]

    yield opened
    for store in stores:
        store.close()


def die(store) -> None:
    """Its locks go; nothing else is done."""
    files = store._disk._files
    with files.disk.lock:
        for _, inode in files.open_files.values():
            if inode.locked_by and inode.locked_by[0] is files:
                inode.locked_by = None
    files.read_only = True  # whatever its threads still do does not happen


def test_one_reads_what_the_other_writes(opened):
    one, two = opened(), opened()
    fill(space_of(one), A)
    one.flush().result(30)
    look(two)
    space = space_of(two)
    assert loaded(space, space.chain(A)) == 20
    fill(space, [*A, *B])
    two.flush().result(30)
    assert two.stats().disk.counters.written_pages == 5  # what the other has is not written again
    look(one)
    space = space_of(one)
    assert loaded(space, space.chain([*A, *B])) == 40
    assert one.stats().disk.owned_segments == two.stats().disk.owned_segments == 1
    assert one.stats().disk.num_segments == two.stats().disk.num_segments == 2


def test_a_slot_reused_by_its_owner_is_a_miss_for_the_reader(opened):
    one, two = opened(disk_pages=8), opened(disk_pages=8)
    fill(space_of(one), A)
    one.flush().result(30)
    look(two)
    space = space_of(two)
    with space.acquire(space.chain(A)) as lease:
        assert lease.num_loadable_tokens == 20
        for tokens in (B, C):
            fill(space_of(one), tokens)
            one.flush().result(30)
        result = lease.load().result(30)
        assert result.ok_tokens < 20
        assert result.reason == "failed"
    assert two.stats().disk.counters.checksum_misses > 0
    look(two)
    assert loaded(space, space.chain(A)) < 20


def test_segments_of_the_dead_are_adopted(opened, disk):
    one, two = opened(), opened()
    fill(space_of(one), A)
    one.flush().result(30)
    look(two)
    assert two.stats().disk.evictable_pages == 0
    look(two)
    assert two.stats().disk.owned_segments == 0
    die(one)
    look(two)
    stats = two.stats().disk
    assert (stats.owned_segments, stats.evictable_pages) == (1, 5)
    assert stats.free_slots == 3
    space = space_of(two)
    assert loaded(space, space.chain(A)) == 20
    fill(space, B)
    assert two.flush().result(30)
    assert two.stats().disk.num_segments == 2


def test_an_adopted_slot_is_reused_with_a_new_generation(opened):
    one, two = opened(disk_pages=8), opened(disk_pages=8)
    fill(space_of(one), A)
    one.flush().result(30)
    die(one)
    look(two)
    space = space_of(two)
    for i in range(10, 14):
        chain = fill(space, [i] * 16)
        assert two.flush().result(30)
    crowd_out(two)
    assert loaded(space, chain) in (0, 16)  # right if it is still there


def test_all_together_stay_within_the_budget(opened, disk):
    stores = [opened(disk_pages=24) for _ in range(3)]
    budget = stores[0].stats().disk.budget_bytes
    for i in range(12):
        fill(space_of(stores[i % 3]), [i] * 32)
        stores[i % 3].flush().result(30)
        assert (
            sum(len(inode.content) for name, inode in disk.names.items() if ".kv" in name) <= budget
        )
        for store in stores:
            look(store)
    for store in stores:
        for i in range(12):
            space = space_of(store)
            loaded(space, space.chain([i] * 32))


def test_a_drop_reaches_the_segments_of_others(opened, disk):
    one, two = opened(), opened()
    fill(space_of(one), A)
    fill(space_of(one), B)
    one.flush().result(30)
    look(two)
    assert space_of(two).drop(space_of(two).chain(A[:8])) == 4
    look(one)
    for store in (one, two):
        assert store._disk.count(space_of(store).ns_key, space_of(store).chain(A)) == 1
        assert store._disk.count(space_of(store).ns_key, space_of(store).chain(B)) == 5
    one.close()
    two.close()
    space = space_of(opened())
    assert loaded(space, space.chain(A)) == 4
    assert loaded(space, space.chain(B)) == 20


def test_a_reader_alone_never_writes(opened, disk):
    one = opened()
    fill(space_of(one), A)
    one.close()
    length = len(disk.log)
    reader = sim_store(SimFiles(disk, read_only=True))
    space = space_of(reader)
    assert loaded(space, space.chain(A)) == 20
    fill(space, B)
    assert not reader.flush().result(30)
    with pytest.raises(OSError, match="read-only"):
        space.drop(space.chain(A))
    assert reader.stats().disk.read_only
    reader.close()
    assert len(disk.log) == length


def test_a_read_only_root_that_is_no_store_is_refused(disk):
    with pytest.raises(ValueError, match="must be a store"):
        sim_store(SimFiles(disk, read_only=True))


def test_a_segment_given_back_is_forgotten(opened, disk):
    one, two = opened(), opened()
    fill(space_of(one), A)
    one.flush().result(30)
    look(two)
    space = space_of(two)
    with space.acquire(space.chain(A)) as lease:
        for name in [name for name in disk.names if ".kv" in name]:
            del disk.names[name]
        look(two)
        assert two.stats().disk.num_pages == 0
        assert lease.load().result(30).reason == "dropped"
    look(two)
    assert two.stats().disk.num_segments == 0


def test_segments_of_another_model_make_room(opened, disk):
    one = opened(disk_pages=8)
    fill(space_of(one), A)
    one.close()
    other = SimFiles(disk)
    for name in [name for name in disk.names if name.endswith(".kvd")]:
        fd = other.open(name)
        other.pwrite(fd, bytes(4096), 0)  # not a segment that we know
        other.close(fd)
    store = opened(disk_pages=8)
    assert store.stats().disk.num_segments == 0
    fill(space_of(store), B)
    assert store.flush().result(30)
    space = space_of(store)
    assert store._disk.count(space.ns_key, space.chain(B)) == 5
    budget = store.stats().disk.budget_bytes
    assert sum(len(inode.content) for name, inode in disk.names.items() if ".kv" in name) <= budget


def test_a_smaller_budget_gives_segments_back(opened, disk):
    one = opened(disk_pages=64)
    for i in range(6):
        fill(space_of(one), [i] * 32)
        one.flush().result(30)
    one.close()
    two = opened(disk_pages=24)
    stats = two.stats().disk
    assert 0 < stats.allocated_bytes <= stats.budget_bytes
    for i in range(6):
        space = space_of(two)
        assert loaded(space, space.chain([i] * 32)) in (0, 4, 8, 12, 16, 20, 24, 28, 32)
    two.check_integrity()


def write_on(store, rounds, first=0):
    space = space_of(store)
    for i in range(rounds):
        fill(space, [first + i] * 32)
        store.flush(durable=False).result(30)
        store._disk._worker._room.full_until = 0.0  # a second later


def test_who_comes_later_gets_his_part_of_the_budget(opened, disk):
    one = opened()
    write_on(one, 10)
    num_segments = one.stats().disk.owned_segments
    two = opened()
    write_on(two, 1, 100)
    assert two.stats().disk.counters.written_pages == 0
    for i in range(2 * num_segments):
        look(one)
        write_on(two, 1, 200 + i)
        assert sum(len(inode.content) for name, inode in disk.names.items() if ".kv" in name) <= (
            one.stats().disk.budget_bytes
        )
        one.check_integrity()
        two.check_integrity()
    stats = [store.stats().disk for store in (one, two)]
    owned = [disk.owned_segments for disk in stats]
    assert sum(owned) == num_segments
    assert abs(owned[0] - owned[1]) <= 1
    assert stats[0].counters.yielded_segments == owned[1]
    assert stats[0].counters.yielded_pages >= 4 * owned[1]
    # Those of the first that were used last are still there, for both.
    look(two)
    for store in (one, two):
        space = space_of(store)
        assert loaded(space, space.chain([9] * 32)) == 32
        last = [200 + 2 * num_segments - 1] * 32
        look(store)
        assert loaded(space, space.chain(last)) == 32
    one.close()
    two.close()
    assert not [name for name in disk.names if name.endswith(".ask")]


def test_the_dead_are_given_nothing(opened, disk):
    one, two = opened(), opened()
    write_on(one, 10)
    write_on(two, 1, 100)
    assert sum(name.endswith(".ask") for name in disk.names) == 2  # each has no room to grow
    die(two)
    look(one)
    assert one.stats().disk.counters.yielded_segments == 0
    assert sum(name.endswith(".ask") for name in disk.names) == 1


def test_a_segment_in_use_is_not_given(opened, disk):
    one = opened()
    write_on(one, 10)
    crowd_out(one)
    space = space_of(one)
    found = [space.acquire(space.chain([i] * 32)) for i in range(10)]
    assert sum(lease.num_loadable_tokens > 0 for lease in found) > 2
    two = opened()
    write_on(two, 1, 100)
    look(one)
    for lease in found:
        load = lease.load().result(30)
        assert load.reason in (None, "memory")
        lease.release()
    one.check_integrity()
