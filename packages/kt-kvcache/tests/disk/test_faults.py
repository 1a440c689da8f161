# SPDX-License-Identifier: Apache-2.0
"""Drives that fail, refuse, lie, are full or slow: misses and counts, nothing else."""

import errno
import random
import threading
import time

import pytest

from .known_pages import SLOT_BYTES, crowd_out, fill, loaded, space_of
from .sim_files import SimDisk, SimFiles
from .sim_store import look, sim_store

A, B, C = ([i] * 40 for i in range(3))


@pytest.fixture
def files():
    return SimFiles(SimDisk())


@pytest.fixture
def store(files):
    store = sim_store(files)
    yield store
    files.fault = lambda op, name: None
    store.check_integrity()
    stats = store.stats()
    assert stats.open_leases == stats.open_writers == stats.reserved_pages == 0
    store.close()


def failing(op: str, code: int, *, times: int = 10**9, suffix: str = ""):
    left = [times]

    def fault(asked: str, name: str) -> None:
        if asked == op and name.endswith(suffix) and left[0] > 0:
            left[0] -= 1
            raise OSError(code, "told to fail")

    return fault


def retry_now(store) -> None:
    store._disk._worker.health.retry_at = 0.0
    store._disk._worker._room.full_until = 0.0


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("op", ["pwritev", "pwrite", "allocate", "open", "sync"])
def test_writing_that_fails_loses_pages_and_recovers(store, files, op, code):
    space = space_of(store)
    files.fault = failing(op, code)
    fill(space, A)
    assert not store.flush().result(30)
    stats = store.stats().disk
    assert stats.counters.io_errors + stats.counters.no_space > 0
    assert loaded(space, space.chain(A)) == 40  # memory has them
    files.fault = lambda op, name: None
    retry_now(store)
    fill(space, [*A, *B])
    assert store.flush().result(30)
    crowd_out(store)
    assert loaded(space, space.chain([*A, *B])) == 80
    assert not store.stats().disk.degraded


def test_a_failing_drive_is_left_alone_longer_each_time(store, files):
    space = space_of(store)
    fill(space, C)
    store.flush().result(30)
    files.fault = failing("pwritev", errno.EIO)
    waits = []
    for i in range(8):
        retry_now(store)
        fill(space, [*C, *[i] * 4])
        store.flush().result(30)
        assert store.stats().disk.degraded
        waits.append(store._disk._worker.health.retry_at - time.monotonic())
    assert [round(wait) for wait in waits] == [1, 2, 4, 8, 16, 32, 60, 60]
    degraded_ms = store.stats().disk.counters.degraded_ms
    time.sleep(0.02)
    assert 20 <= store.stats().disk.counters.degraded_ms - degraded_ms < 60_000
    before = store.stats().disk.counters.dropped_writes
    fill(space, [5] * 8)  # not even tried
    assert store.stats().disk.counters.dropped_writes == before + 2


def test_a_bad_slot_is_not_used_again(store, files):
    space = space_of(store)
    files.fault = failing("pwritev", errno.EIO, times=1)
    fill(space, A)
    store.flush().result(30)
    assert len(store._disk._pages._places.bad) == 1
    retry_now(store)
    fill(space, [*A, *B])
    assert store.flush().result(30)
    bad = next(iter(store._disk._pages._places.bad))
    assert all(
        page.page_id != bad for page in store._disk._pages._index.by_hash.values() if page.parent
    )


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ENOMEM, errno.EAGAIN])
def test_reading_that_fails_is_a_miss(store, files, code):
    space = space_of(store)
    fill(space, A)
    store.flush().result(30)
    crowd_out(store)
    files.fault = failing("preadv", code)
    with space.acquire(space.chain(A)) as lease:
        result = lease.load().result(30)
        assert (result.ok_tokens, result.reason) == (0, "failed")
    assert store.stats().disk.counters.read_errors == 10
    files.fault = lambda op, name: None
    store.flush().result(30)
    # Only EIO says that the page is lost; the rest may be read the next time.
    assert loaded(space, space.chain(A)) == (0 if code == errno.EIO else 40)
    fill(space, A)
    store.flush().result(30)
    crowd_out(store)
    assert loaded(space, space.chain(A)) == 40


def test_one_bad_page_ends_the_load_before_it(store, files):
    space = space_of(store)
    chain = fill(space, A)
    store.flush().result(30)
    crowd_out(store)
    page = store._disk._pages._index.by_hash[chain.page_hash(6)]
    segment, slot = store._disk._pages.locate(page.page_id)
    inode = files.disk.names[segment.name + ".kvs"]
    inode.content[slot * SLOT_BYTES + 5000] ^= 1
    with space.acquire(chain) as lease:
        reserved: list[int] = []
        load = lease.load()
        load.add_done_callback(lambda _: reserved.append(store.stats().reserved_pages))
        result = load.result(30)
        assert (result.ok_tokens, result.reason) == (24, "failed")
        assert reserved == [0]  # whoever is told finds the slots of the other pages free
        assert lease.num_tokens == 24
    assert store.stats().disk.counters.checksum_misses == 1
    assert store.stats().disk.counters.damaged_pages >= 1
    assert loaded(space, chain) == 24


def test_short_and_interrupted_calls_are_continued(store, files):
    rng = random.Random(2)
    files.fault = lambda op, name: rng.choice([512, 4096, None]) if "v" in op[-1:] else None
    space = space_of(store)
    fill(space, A)
    assert store.flush().result(30)
    crowd_out(store)
    assert loaded(space, space.chain(A)) == 40


def test_a_slow_drive_holds_nobody_up(store, files):
    go = threading.Event()

    def slow(op, name):
        if op in ("pwritev", "preadv"):
            go.wait(30)

    space = space_of(store)
    fill(space, A)
    store.flush().result(30)
    crowd_out(store)
    files.fault = slow
    start = time.monotonic()
    fill(space, B)
    fill(space, C)
    with space.acquire(space.chain(A)) as lease:
        assert lease.load(deadline=0.05).result(20).reason == "deadline"
    assert store.flush(timeout=0.05).result(20) is False
    assert time.monotonic() - start < 5
    assert store.stats().pinned_pages <= 10  # what is on its way, not what waits
    go.set()
    assert store.flush().result(30)


def test_no_space_left_is_not_taken(files):
    files.space = 10 * SLOT_BYTES
    store = sim_store(files)
    space = space_of(store)
    for tokens in (A, B, C):
        fill(space, tokens)
        store.flush().result(30)
    assert store.stats().disk.allocated_bytes <= files.space + 8 * SLOT_BYTES
    assert store.stats().disk.counters.evicted_pages > 0
    store.close()


@pytest.mark.parametrize("op", ["names", "open", "pread"])
def test_looking_around_that_fails_is_tried_again(files, op):
    one, two = sim_store(files), sim_store(SimFiles(files.disk))
    fill(space_of(one), A)
    one.flush().result(30)
    two._disk._files.fault = failing(op, errno.EMFILE, times=1)
    look(two)
    two._disk._files.fault = lambda op, name: None
    look(two)
    space = space_of(two)
    assert loaded(space, space.chain(A)) == 40
    one.close()
    two.close()


def test_a_segment_that_cannot_be_read_at_open_costs_only_its_pages(files):
    store = sim_store(files)
    fill(space_of(store), A)
    fill(space_of(store), B)
    store.close()
    files = SimFiles(files.disk)
    first = min(name for name in files.disk.names if name.endswith(".kvd"))
    files.fault = failing("pread", errno.EIO, suffix=first)
    store = sim_store(files)
    space = space_of(store)
    for tokens in (A, B):
        loaded(space, space.chain(tokens))
    fill(space, C)
    assert store.flush().result(30)
    store.close()


def test_a_drop_that_cannot_be_made_durable_says_so(store, files):
    space = space_of(store)
    fill(space, A)
    store.flush().result(30)
    files.fault = failing("pwrite", errno.EIO, suffix=".kvd")
    with pytest.raises(OSError, match="told to fail"):
        space.drop(space.chain(A[:4]))
    files.fault = lambda op, name: None
    assert loaded(space, space.chain(A)) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_thread_that_writes_hangs_nobody(store):
    space = space_of(store)
    fill(space, A)
    assert store.flush().result(30)

    def bug(offer):
        raise RuntimeError("a bug")

    store._disk._worker.flights.send = bug
    fill(space, B)
    assert store.flush().result(30) is False
    with pytest.raises(OSError, match="has ended"):  # it could not promise anything
        space.drop(space.chain(B[:4]))
    fill(space, [9] * 128)
    assert loaded(space, space.chain(A)) == 40  # reading goes on


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("where", ["flush", "landing", "drop"])
def test_a_bug_in_what_somebody_waits_for_hangs_nobody(store, where):
    space, worker = space_of(store), store._disk._worker

    def bug(*_):
        raise RuntimeError("a bug")

    if where == "flush":
        worker.policy.rest = bug
    elif where == "landing":  # while the flush waits for what is in flight
        worker._sync = bug
    else:
        worker._room.drop = bug
    fill(space, A)
    if where != "drop":
        assert store.flush().result(30) is False
    with pytest.raises(OSError, match="has ended"):
        space.drop(space.chain(A[:4]))


# Files that somebody else changed


def pages_found(files) -> int:
    store = sim_store(files)
    space = space_of(store)
    found = sum(loaded(space, space.chain(tokens)) for tokens in (A, B)) // 4
    store.check_integrity()
    fill(space, C)  # it still works
    store.flush().result(30)
    crowd_out(store)
    assert loaded(space, space.chain(C)) == 40
    store.close()
    return found


@pytest.fixture
def left(files):
    """What a store with A and B in two segments or more leaves."""
    store = sim_store(files)
    fill(space_of(store), A)
    fill(space_of(store), B)
    store.close()
    return SimFiles(files.disk)


def names(files, suffix):
    return sorted(name for name in files.disk.names if name.endswith(suffix))


def test_flipped_bits_anywhere_are_misses(files):
    store = sim_store(files)
    fill(space_of(store), A)
    store.close()
    rng = random.Random(7)
    whole = {name: bytes(inode.content) for name, inode in files.disk.names.items()}
    bad_records = 0
    for _ in range(120):
        name = rng.choice(names(files, ".kvd") + 2 * names(files, ".kvs"))
        content = files.disk.names[name].content
        used = 4096 + 10 * 512 if name.endswith("d") else 10 * SLOT_BYTES
        content[rng.randrange(min(used, len(content)))] ^= 1 << rng.randrange(8)
        store = sim_store(SimFiles(files.disk))
        space = space_of(store)
        assert loaded(space, space.chain(A)) <= 40  # and what there is, is right
        bad_records += store.stats().disk.counters.bad_records
        store.close()
        for name, raw in whole.items():
            if name in files.disk.names:
                files.disk.names[name].content[:] = raw
            else:
                fd = files.open(name, create=True)
                files.pwrite(fd, raw, 0)
                files.close(fd)
    assert bad_records > 0


@pytest.mark.parametrize("suffix", [".kvd", ".kvs"])
@pytest.mark.parametrize("size", [0, 100, 4096, 5000])
def test_truncated_files(left, suffix, size):
    for name in names(left, suffix):
        del left.disk.names[name].content[size:]
    assert pages_found(left) == 0


@pytest.mark.parametrize("suffix", [".kvd", ".kvs"])
def test_swapped_files(left, suffix):
    one, two = names(left, suffix)[:2]
    inodes = left.disk.names
    inodes[one], inodes[two] = inodes[two], inodes[one]
    assert pages_found(left) < 20


def test_a_directory_restored_from_an_older_copy(left):
    older = {name: bytes(left.disk.names[name].content) for name in names(left, ".kvd")}
    store = sim_store(left, disk_pages=24)
    for i in range(20, 26):
        fill(space_of(store), [i] * 40)
        store.flush().result(30)
    store.close()
    for name, raw in older.items():
        if name in left.disk.names:
            left.disk.names[name].content[:] = raw
    assert pages_found(SimFiles(left.disk)) <= 20


@pytest.mark.parametrize("version", [1, 3])
def test_another_version_is_left_alone_and_makes_room(left, version):
    for name in names(left, ".kvd"):
        left.disk.names[name].content[8] = version
    assert pages_found(left) == 0


def test_another_store_file_is_refused(left):
    left.disk.names["STORE"].content[9] ^= 1
    with pytest.raises(ValueError, match="STORE must be one of this version"):
        sim_store(left)


def test_segments_of_another_store_are_not_read(left):
    del left.disk.names["STORE"]
    assert pages_found(left) == 0
