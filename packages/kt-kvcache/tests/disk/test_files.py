# SPDX-License-Identifier: Apache-2.0
"""A real directory: whose it must be, what its files are, where O_DIRECT is refused."""

import errno
import os
import stat
from pathlib import Path

import pytest

from kt_kvcache import Arena, KVStore, StoreConfig
from kt_kvcache.disk.files import OsFiles

from .known_pages import PAGE_TOKENS, STRIDES, fill, loaded, space_of

TOKENS = list(range(40))


def num_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_directories_and_files_are_for_their_owner_only(open_store, root):
    mask = os.umask(0)
    try:
        fill(space_of(store := open_store()), TOKENS)
        assert store.flush().result(30)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    paths = list(root.iterdir())
    assert {path.suffix for path in paths} == {"", ".lock", ".kvd", ".kvs"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o702, 0o1777])
def test_a_root_that_others_may_write_is_refused(open_store, root, mode):
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(ValueError, match="writable by nobody else"):
        open_store()


def test_a_symlink_or_a_file_is_no_root(open_store, root, tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="not a symlink"):
        open_store()
    root.unlink()
    root.write_bytes(b"")
    with pytest.raises(ValueError, match="must be a directory"):
        open_store()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_root_of_somebody_else_is_refused(open_store, root):
    root.mkdir(mode=0o700)
    os.chown(root, 12345, 12345)
    with pytest.raises(ValueError, match="must belong to its user"):
        open_store()


@pytest.mark.parametrize("make", ["symlink", "fifo", "directory"])
def test_what_is_not_a_regular_file_is_not_opened(open_store, root, tmp_path, make):
    with open_store() as store:
        fill(space_of(store), TOKENS)
    for path in [*root.glob("*.kvd"), *root.glob("*.kvs")]:
        moved = path.rename(tmp_path / path.name)
        if make == "symlink":
            path.symlink_to(moved)
        elif make == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir()
    store = open_store()
    assert store.stats().disk.num_segments == 0
    space = space_of(store)
    assert loaded(space, space.chain(TOKENS)) == 0


def test_what_else_lies_in_the_root_stays(open_store, root):
    root.mkdir(mode=0o700)
    (root / "notes.txt").write_text("mine")
    (root / "x.kvd").write_text("not a segment")
    with open_store() as store:
        fill(space_of(store), TOKENS)
    assert (root / "notes.txt").read_text() == "mine"


def test_where_o_direct_is_refused_the_page_cache_does(open_store, monkeypatch):
    real = os.open

    def refuses(path, flags, *args, **kwargs):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "refused")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuses)
    store = open_store()
    assert not store._disk._files.direct
    fill(space_of(store), TOKENS)
    store.close()
    space = space_of(open_store())
    assert loaded(space, space.chain(TOKENS)) == 40


def test_a_file_system_that_opens_but_does_not_do_o_direct(tmp_path, monkeypatch):
    def refuses(fd, buffers, offset):
        raise OSError(errno.EINVAL, "refused")

    monkeypatch.setattr(os, "pwritev", refuses)
    files = OsFiles(tmp_path / "root")
    assert not files.direct
    assert files.names() == []
    files.close_all()


def test_a_read_only_root_is_read(open_store, root, monkeypatch):
    with open_store() as store:
        fill(space_of(store), TOKENS)
    before = {path.name: path.stat().st_mtime_ns for path in root.iterdir()}
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)
    store = open_store()
    assert store.stats().disk.read_only
    space = space_of(store)
    assert loaded(space, space.chain(TOKENS)) == 40
    store.close()
    assert {path.name: path.stat().st_mtime_ns for path in root.iterdir()} == before


def test_two_stores_of_one_process_are_like_two_processes(open_store):
    one, two = open_store(), open_store()
    fill(space_of(one), TOKENS)
    fill(space_of(two), [7] * 40)
    assert one.flush().result(30)
    assert two.flush().result(30)
    assert one.stats().disk.owned_segments == two.stats().disk.owned_segments >= 1


def test_a_budget_below_one_page_is_refused(root):
    arena = Arena.allocate(4, STRIDES)
    with pytest.raises(ValueError, match="disk_bytes must hold a page of 12808 bytes; got 9000"):
        KVStore.open(root, config=StoreConfig(4, PAGE_TOKENS, disk_bytes=9000), arena=arena)
    before = num_files()
    for _ in range(3):
        with pytest.raises(ValueError, match="disk_bytes"):
            KVStore.open(root, config=StoreConfig(4, PAGE_TOKENS, disk_bytes=9000), arena=arena)
    assert num_files() == before


def test_closing_gives_all_files_back(open_store):
    open_store().close()
    before = num_files()
    for _ in range(3):
        with open_store() as store:
            fill(space_of(store), TOKENS)
    assert num_files() == before
