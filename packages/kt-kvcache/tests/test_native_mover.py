# SPDX-License-Identifier: Apache-2.0
"""What only the core's mover can get wrong; what all movers do is in test_page_mover.py."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from kt_kvcache import Arena
from kt_kvcache.native import HAS_CORE
from kt_kvcache.page_mover import ThreadPageMover, open_page_mover

pytestmark = pytest.mark.skipif(not HAS_CORE, reason="no core in this installation")

if HAS_CORE:
    from kt_kvcache import _core
    from kt_kvcache.native_mover import NativePageMover

    try:
        _core.PageMover(1, 1, True).close()
    except OSError:  # this system has none for us
        KINDS = [False]
    else:
        KINDS = [False, True]
else:
    KINDS = [False]
EXTENT = 4096


@pytest.fixture(params=KINDS)
def uring(request):
    return request.param


@pytest.fixture
def mover(uring):
    mover = NativePageMover(num_threads=2, uring=uring)
    yield mover
    mover.close()


@pytest.fixture
def fd(tmp_path):
    fd = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def arguments(fd, n):
    offsets = np.arange(n, dtype=np.uint64) * EXTENT
    return np.full(n, fd, np.int32), offsets, np.zeros(n, np.uint64)


def test_the_core_s_mover_is_opened_where_it_is(monkeypatch):
    opened = open_page_mover(1 << 20)
    assert isinstance(opened, NativePageMover)
    opened.close()
    monkeypatch.setattr("kt_kvcache.page_mover.HAS_CORE", False)
    for io in ("auto", "threads"):
        assert isinstance(open_page_mover(1 << 20, io), ThreadPageMover)
    with pytest.raises(ValueError, match="needs the compiled core"):
        open_page_mover(1 << 20, "uring")


def test_the_kernel_moves_them_where_that_was_asked_for():
    for io in ("threads", "uring")[: len(KINDS)]:
        mover = open_page_mover(1 << 20, io)
        assert mover.io == io
        mover.close()


# Has io_uring's first system call (425 everywhere) refused, as containers do.
REFUSING = """
import ctypes, errno, os, struct, sys
from kt_kvcache import Arena, KVStore, StoreConfig
from kt_kvcache.page_mover import open_page_mover

arena = Arena.allocate(4, [64])
libc = ctypes.CDLL(None, use_errno=True)
refused, allowed = 5 << 16 | errno.EPERM, 0x7FFF << 16
words = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (6, 0, 0, refused), (6, 0, 0, allowed)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *word) for word in words))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(words), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges, so that everybody may filter
assert libc.prctl(22, 2, program, 0, 0) == 0
before = os.listdir("/proc/self/fd")
for root in (sys.argv[1], sys.argv[1]):
    try:
        KVStore.open(root, config=StoreConfig(4, disk_bytes=1 << 20, io="uring"), arena=arena)
    except OSError as error:
        assert error.errno == errno.EPERM, error
        assert 'io="uring" needs a system that lets us' in str(error), error
    else:
        raise SystemExit("not refused")
with KVStore.open(sys.argv[1], config=StoreConfig(4, disk_bytes=1 << 20), arena=arena) as store:
    assert store.stats().disk.io == "threads"
assert os.listdir("/proc/self/fd") == before
"""


def test_where_the_system_refuses_io_uring_threads_stand_in(tmp_path):
    subprocess.run([sys.executable, "-c", REFUSING, tmp_path / "root"], check=True, timeout=60)


def num_open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_movers_leave_no_files_open(uring, fd):
    before = num_open_files()
    for _ in range(3):
        mover = NativePageMover(num_threads=2, uring=uring)
        assert num_open_files() == before + uring
        view = Arena.allocate(1, [8]).view((0,), writable=False)
        assert not mover.write(view, *arguments(fd, 1), EXTENT).result(30)[0].any()
        mover.close()
        assert num_open_files() == before


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, np.zeros(1, np.int64)),  # fds
        (1, np.zeros(1, np.int64)),  # offsets
        (2, np.zeros((2, 2), np.uint64)[:, 0]),  # seeds, not in one piece
        (3, np.zeros((1, 1), np.uint32)),  # sums
        (3, np.zeros(1, np.uint64)),
    ],
)
def test_arrays_of_other_types_are_refused_rather_than_copied(mover, fd, place, value):
    view = Arena.allocate(2, [100]).view((0,), writable=True)
    call = [*arguments(fd, 1), np.zeros((1, 1), np.uint64), EXTENT]
    call[place] = value
    with pytest.raises(TypeError):
        mover.read(view, *call)


def test_buffers_that_are_no_rows_are_refused(mover, fd):
    good = np.zeros((2, 8), np.uint8)
    sums, status = np.zeros((1, 1), np.uint64), np.zeros(1, np.int32)
    call = (*arguments(fd, 1), sums, EXTENT, status, "ended")
    for bad in (good.astype(np.int8), good[:, ::2], good[0], b"bytes"):
        with pytest.raises(ValueError, match="C-contiguous uint8"):
            mover._mover.move(True, [good, bad], [0], *call)
    with pytest.raises(ValueError, match="must have layers; got none"):
        mover._mover.move(True, [], [0], *call)
    with pytest.raises(ValueError, match=r"in \[0, 1\); got 1"):
        mover._mover.move(True, [good, good[:1]], [1], *call)
    with pytest.raises(TypeError):
        mover._mover.move(True, [good], ["0"], *call)
    with pytest.raises(OverflowError):
        mover._mover.move(True, [good], [2**63], *call)


@pytest.mark.parametrize("arguments", [(0, 1), (1025, 1), (1, 0)])
def test_sizes_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=r"\[kvstore.mover\] (num_threads|inflight_bytes) must be"):
        _core.PageMover(*arguments, False)


def test_a_batch_keeps_what_it_needs_alive(uring, fd):
    mover = NativePageMover(num_threads=1, uring=uring)
    arena = Arena([np.full((64, EXTENT), 7, np.uint8)])
    future = mover.write(arena.view(tuple(range(64)), writable=False), *arguments(fd, 64), EXTENT)
    del arena
    assert not future.result(30)[0].any()
    mover.close()
    assert os.pread(fd, 64 * EXTENT, 0) == b"\x07" * 64 * EXTENT


def test_a_callback_may_close_the_mover(uring, fd):
    mover = NativePageMover(num_threads=1, uring=uring)
    view = Arena.allocate(1, [8]).view((0,), writable=False)
    closed = threading.Event()

    def close(_):
        mover.close()
        closed.set()

    mover.write(view, *arguments(fd, 1), EXTENT).add_done_callback(close)
    assert closed.wait(30)


def test_a_mover_nobody_closed_ends_with_its_last_reference(uring, fd):
    core = _core.PageMover(2, 1 << 20, uring)
    rows, status = np.zeros((1, 8), np.uint8), np.zeros(1, np.int32)
    sums = np.zeros((1, 1), np.uint64)
    assert core.move(False, [rows], [0], *arguments(fd, 1), sums, EXTENT, status, "ended")
    del core  # waits for the write
    assert os.fstat(fd).st_size == EXTENT


def test_a_fork_is_refused_and_ends_cleanly(mover, fd):
    view = Arena.allocate(1, [8]).view((0,), writable=False)
    mover.write(view, *arguments(fd, 1), EXTENT).result(30)  # its threads run
    child = os.fork()
    if child == 0:
        code = 1
        try:
            mover.write(view, *arguments(fd, 1), EXTENT)
        except ValueError as error:
            code = 0 if "process that made it" in str(error) else 2
        del mover
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert mover.write(view, *arguments(fd, 1), EXTENT).result(30)[0].tolist() == [0]
