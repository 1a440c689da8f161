# SPDX-License-Identifier: Apache-2.0
"""Every PageMover there is, against real files and numpy."""

import errno
import os
import resource
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from kt_kvcache import Arena
from kt_kvcache.native import HAS_CORE
from kt_kvcache.page_mover import (
    ALIGN,
    CHECKSUM,
    SHORT,
    ThreadPageMover,
    num_extents,
    payload_bytes,
)

MOVERS = [pytest.param(ThreadPageMover, id="python")]
if HAS_CORE:
    from kt_kvcache.native_mover import NativePageMover

    MOVERS.append(pytest.param(NativePageMover, id="threads"))
    try:
        NativePageMover(uring=True).close()
    except OSError:  # not on this system: test_native_mover.py says what it does then
        pass
    else:
        MOVERS.append(pytest.param(partial(NativePageMover, uring=True), id="uring"))
NUM_PAGES = 12
STRIDES = (2500, 1000, 4000)
PAYLOAD, EXTENT = 8192, 4096


@pytest.fixture(params=MOVERS)
def make(request):
    return request.param


@pytest.fixture
def mover(make):
    mover = make(num_threads=2, inflight_bytes=1 << 20)
    yield mover
    mover.close()


@pytest.fixture
def fd(tmp_path):
    fd = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 64 * PAYLOAD)
    yield fd
    os.close(fd)


def random_arena(seed=0, num_pages=NUM_PAGES):
    rng = np.random.default_rng(seed)
    return Arena([rng.integers(0, 256, (num_pages, n), np.uint8, False) for n in STRIDES])


def arguments(fd, offsets, seeds):
    n = len(offsets)
    return (
        np.full(n, fd, np.int32),
        np.array(offsets, np.uint64),
        np.array(seeds, np.uint64),
    )


def written(mover, fd, arena, ids, offsets, seeds):
    args = arguments(fd, offsets, seeds)
    view = arena.view(tuple(ids), writable=False)
    statuses, sums = mover.write(view, *args, EXTENT).result(30)
    assert statuses.tolist() == [0] * len(ids)
    assert statuses.dtype == np.int32
    assert sums.dtype == np.uint64
    return args, sums


def rows(arena, page_id):
    return b"".join(bytes(arena.view((page_id,), writable=False).page(i, 0)) for i in range(3))


def test_sizes():
    assert payload_bytes(sum(STRIDES)) == PAYLOAD
    assert payload_bytes(4096) == 4096
    assert payload_bytes(4097) == 8192
    assert (num_extents(8192, 4096), num_extents(8192, 12288), num_extents(12288, 8192)) == (
        2,
        1,
        2,
    )


@pytest.mark.parametrize("offsets", [[0, 8192, 16384, 24576], [40960, 0, 81920, 8192], [8192]])
def test_a_file_holds_the_layers_rows_padding_and_their_checksums(mover, fd, offsets):
    arena, n = random_arena(), len(offsets)
    ids, seeds = [7, 2, 9, 0][:n], [5, 2**64 - 1, 0, 77][:n]
    _, sums = written(mover, fd, arena, ids, offsets, seeds)
    assert sums.shape == (n, 2)
    for page_id, offset, seed, row_sums in zip(ids, offsets, seeds, sums, strict=True):
        stored = os.pread(fd, PAYLOAD, offset)
        assert stored == rows(arena, page_id).ljust(PAYLOAD, b"\0")
        assert row_sums.tolist() == [
            xxh3_64_intdigest(stored[:EXTENT], seed),
            xxh3_64_intdigest(stored[EXTENT:], (seed + 1) % 2**64),
        ]


@pytest.mark.parametrize("extent", [4096, 8192, 12288])
def test_what_was_written_is_read_into_other_pages(mover, fd, extent):
    source, target = random_arena(), random_arena(1)
    untouched = rows(target, 11)
    args = arguments(fd, [8192, 16384, 0], [1, 2, 3])
    view = source.view((3, 4, 5), writable=False)
    statuses, sums = mover.write(view, *args, extent).result(30)
    assert sums.shape == (3, num_extents(PAYLOAD, extent))
    got = mover.read(target.view((0, 10, 1), writable=True), *args, sums, extent).result(30)
    assert statuses.tolist() == got.tolist() == [0, 0, 0]
    for mine, theirs in ((3, 0), (4, 10), (5, 1)):
        assert rows(source, mine) == rows(target, theirs)
    assert rows(target, 11) == untouched


def test_only_pages_that_verify_are_scattered(mover, fd):
    source, target = random_arena(), random_arena(1)
    offsets = [i * PAYLOAD for i in range(6)]
    args, sums = written(mover, fd, source, range(6), offsets, range(6))
    os.pwrite(fd, b"\x00\x01\x02\x03\x04", 1 * PAYLOAD + 100)  # in the first extent
    os.pwrite(fd, b"\xff", 4 * PAYLOAD + PAYLOAD - 1)  # in the padding
    sums[2] += 1
    args[2][3] += 1
    before = [rows(target, i) for i in range(6)]
    got = mover.read(target.view(tuple(range(6)), writable=True), *args, sums, EXTENT).result(30)
    assert got.tolist() == [0, CHECKSUM, CHECKSUM, CHECKSUM, CHECKSUM, 0]
    for i in range(6):
        assert rows(target, i) == (rows(source, i) if i in (0, 5) else before[i])


def test_a_page_cut_off_or_without_a_file_does_not_take_its_neighbours_along(mover, fd):
    source, target = random_arena(), random_arena(1)
    args, sums = written(mover, fd, source, range(4), [0, 8192, 16384, 24576], range(4))
    os.ftruncate(fd, 24576 + 4096)
    args[0][1] = 10**6  # not open
    got = mover.read(target.view((0, 1, 2, 3), writable=True), *args, sums, EXTENT).result(30)
    assert got.tolist() == [0, errno.EBADF, 0, SHORT]
    assert rows(target, 2) == rows(source, 2)


def test_a_write_that_fails_says_why(mover, fd, tmp_path):
    readable = os.open(tmp_path / "data", os.O_RDONLY)
    args = arguments(fd, [0, 8192], [0, 0])
    args[0][1] = readable
    view = random_arena().view((0, 1), writable=False)
    statuses, _ = mover.write(view, *args, EXTENT).result(30)
    os.close(readable)
    assert statuses.tolist() == [0, errno.EBADF]


def test_what_the_system_answers_is_each_page_s_own(mover):
    view = random_arena().view((0, 1), writable=True)
    args = arguments(0, [0, 0], [0, 0])  # nothing is mapped at 0
    unmapped, full = Path("/proc/self/mem"), Path("/dev/full")
    with unmapped.open("rb") as unmapped, full.open("wb") as full:
        args[0][:] = unmapped.fileno()
        read = mover.read(view, *args, np.zeros((2, 2), np.uint64), EXTENT).result(30)
        args[0][:] = full.fileno()
        statuses, _ = mover.write(view, *args, EXTENT).result(30)
    assert read.tolist() == [errno.EIO] * 2
    assert statuses.tolist() == [errno.ENOSPC] * 2


def test_a_write_that_the_system_cuts_short_goes_on_until_it_is_refused(mover, fd):
    args = arguments(fd, [0, 8192, 16384, 24576], range(4))
    source, target = random_arena(), random_arena(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384 + 4096, limits[1]))
    try:
        view = source.view((0, 1, 2, 3), writable=False)
        statuses, sums = mover.write(view, *args, EXTENT).result(30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert statuses.tolist() == [0, 0, errno.EFBIG, errno.EFBIG]
    got = mover.read(target.view((0, 1, 2, 3), writable=True), *args, sums, EXTENT).result(30)
    assert got.tolist() == [0, 0, CHECKSUM, CHECKSUM]
    assert os.pread(fd, ALIGN, 16384) == rows(source, 2)[:ALIGN]


# Of this one the system gives no more than 4096 bytes at a time, however many are asked for.
IN_PIECES = Path("/sys/kernel/btf/vmlinux")


@pytest.mark.skipif(not os.access(IN_PIECES, os.R_OK), reason="the system has no such file")
def test_a_read_that_comes_in_pieces_is_put_together(mover):
    target = random_arena()
    fd = os.open(IN_PIECES, os.O_RDONLY)
    assert len(os.pread(fd, 4 * PAYLOAD, 0)) == ALIGN
    stored = [b"".join(os.pread(fd, ALIGN, i * PAYLOAD + j) for j in (0, ALIGN)) for i in range(4)]
    args = arguments(fd, [i * PAYLOAD for i in range(4)], [0] * 4)
    halves = [(xxh3_64_intdigest(p[:EXTENT], 0), xxh3_64_intdigest(p[EXTENT:], 1)) for p in stored]
    sums = np.array(halves, np.uint64)
    view = target.view((3, 0, 1, 2), writable=True)
    got = mover.read(view, *args, sums, EXTENT).result(30)
    os.close(fd)
    assert got.tolist() == [0] * 4
    expected = [page[: sum(STRIDES)] for page in stored]
    assert [rows(target, page_id) for page_id in (3, 0, 1, 2)] == expected


def test_batches_of_many_threads_and_a_close_that_waits_for_them(make, fd):
    mover = make(num_threads=3, inflight_bytes=4 * PAYLOAD)
    source, target = random_arena(num_pages=48), random_arena(1, num_pages=48)
    futures = [None] * 48
    read_back = threading.Barrier(4)

    def ask(first):
        sums = {}
        for i in range(first, 48, 4):
            args = arguments(fd, [i * PAYLOAD], [i])
            _, sums[i] = mover.write(source.view((i,), writable=False), *args, EXTENT).result(30)
        read_back.wait(30)
        for i in range(first, 48, 4):
            args = arguments(fd, [i * PAYLOAD], [i])
            view = target.view((i,), writable=True)
            futures[i] = mover.read(view, *args, sums[i], EXTENT)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mover.close()
    assert all(future.done() and future.result().tolist() == [0] for future in futures)
    assert all(rows(source, i) == rows(target, i) for i in range(48))


def test_many_batches_at_once_within_few_bytes_in_flight(make, fd):
    mover = make(num_threads=4, inflight_bytes=PAYLOAD - 1)  # a page at a time
    source = random_arena(num_pages=64)
    target = random_arena(1, num_pages=64)
    writes = []
    for i in range(64):
        args = arguments(fd, [i * PAYLOAD], [i])
        writes.append((args, mover.write(source.view((i,), writable=False), *args, EXTENT)))
    reads = []
    for i, (args, write) in enumerate(writes):
        sums = write.result(30)[1]
        reads.append(mover.read(target.view((i,), writable=True), *args, sums, EXTENT))
    assert all(read.result(30).tolist() == [0] for read in reads)
    assert all(rows(source, i) == rows(target, i) for i in range(64))
    mover.close()


def test_an_empty_batch_is_done(mover):
    args = arguments(0, [], [])
    view = random_arena().view((), writable=True)
    assert mover.read(view, *args, np.zeros((0, 2), np.uint64), EXTENT).result(0).shape == (0,)
    assert [part.shape for part in mover.write(view, *args, EXTENT).result(0)] == [(0,), (0, 2)]


def test_direct_io_takes_its_buffers(mover, tmp_path):
    try:
        fd = os.open(tmp_path / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    except OSError:
        pytest.skip("the file system refuses O_DIRECT")
    source, target = random_arena(), random_arena(1)
    args, sums = written(mover, fd, source, range(4), [0, 8192, 24576, 16384], range(4))
    got = mover.read(target.view((3, 2, 1, 0), writable=True), *args, sums, EXTENT).result(30)
    os.close(fd)
    assert got.tolist() == [0, 0, 0, 0]
    assert rows(target, 0) == rows(source, 3)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"extent": 4097}, "multiple of 4096"),
        ({"extent": 0}, "extent_bytes"),
        ({"offsets": [1, 0]}, "offsets"),
        ({"offsets": [0]}, "offsets"),
        ({"seeds": [0]}, "seeds"),
        ({"sums": (2, 3)}, "sums"),
        ({"ids": (0, NUM_PAGES)}, "page ids"),
        ({"ids": (-1, 0)}, "page ids"),
        ({"writable": False}, "writable"),
    ],
)
def test_what_does_not_fit_is_refused(mover, fd, change, rule):
    view = random_arena().view(change.get("ids", (0, 1)), writable=change.get("writable", True))
    fds = np.full(2, fd, np.int32)
    offsets = np.array(change.get("offsets", [0, 8192]), np.uint64)
    seeds = np.array(change.get("seeds", [0, 0]), np.uint64)
    sums = np.zeros(change.get("sums", (2, 2)), np.uint64)
    with pytest.raises(ValueError, match=rule):
        mover.read(view, fds, offsets, seeds, sums, change.get("extent", EXTENT))


def test_a_callback_runs_and_close_waits_and_ends(make, fd):
    mover = make(num_threads=1, inflight_bytes=1 << 20)
    seen = threading.Event()
    args = arguments(fd, [0], [0])
    view = random_arena().view((0,), writable=False)
    future = mover.write(view, *args, EXTENT)
    future.add_done_callback(lambda _: seen.set())
    mover.close()
    assert future.done()
    assert seen.wait(5)
    mover.close()
    with pytest.raises(ValueError, match="closed"):
        mover.write(view, *args, EXTENT)


# Through Python's own calls, so that a system that does less than asked can be played


def test_short_calls_are_continued(fd):
    def pwritev(fd, buffers, offset):
        return os.pwritev(fd, [buffers[0][:ALIGN]], offset)

    def preadv(fd, buffers, offset):
        return os.preadv(fd, [buffers[0][:1000]], offset)

    mover = ThreadPageMover(2, 1 << 20, preadv=preadv, pwritev=pwritev)
    source, target = random_arena(), random_arena(1)
    args, sums = written(mover, fd, source, range(4), [0, 8192, 16384, 40960], range(4))
    got = mover.read(target.view((0, 1, 2, 3), writable=True), *args, sums, EXTENT).result(30)
    mover.close()
    assert got.tolist() == [0] * 4
    assert [rows(target, i) for i in range(4)] == [rows(source, i) for i in range(4)]


def test_reads_go_before_writes_and_in_flight_is_bounded(fd):
    order, inflight, most = [], [0], [0]
    started = threading.Event()
    lock = threading.Lock()

    def play(kind, move):
        def call(fd, buffers, offset):
            with lock:
                order.append(kind)
                inflight[0] += buffers[0].nbytes
                most[0] = max(most[0], inflight[0])
            started.set()
            time.sleep(0.02)
            with lock:
                inflight[0] -= buffers[0].nbytes
            return move(fd, buffers, offset)

        return call

    mover = ThreadPageMover(
        4, 2 * PAYLOAD, preadv=play("r", os.preadv), pwritev=play("w", os.pwritev)
    )
    view = random_arena().view((0, 1, 2, 3), writable=True)
    apart = [0, 16384, 32768, 49152]
    args = arguments(fd, apart, [0] * 4)
    write = mover.write(view, *args, EXTENT)
    started.wait(5)
    read = mover.read(view, *args, np.zeros((4, 2), np.uint64), EXTENT)
    read.result(30)
    write.result(30)
    mover.close()
    assert order.index("r") <= 2
    assert order[-1] == "w"
    assert most[0] == 2 * PAYLOAD
