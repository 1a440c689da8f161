# SPDX-License-Identifier: Apache-2.0
"""A root looked into from outside, beside a store that uses it."""

import os

import pytest

from kt_kvcache.disk.inspect import drop, stored_pages, summarise, verify

from .known_pages import SLOT_BYTES, crowd_out, fill, loaded, space_of
from .sim_store import look

TOKENS = list(range(40))


@pytest.fixture
def store(open_store):
    store = open_store()
    fill(space_of(store), TOKENS)
    fill(space_of(store, "bob"), TOKENS[:8])
    store.flush().result(30)
    return store


def flip(root, page) -> None:
    fd = os.open(root / f"{page.segment}.kvs", os.O_RDWR)
    at = page.slot * SLOT_BYTES + 77
    os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 1]), at)
    os.close(fd)


def test_pages_are_listed_as_they_were_named(store, root):
    space = space_of(store)
    chain = space.chain(TOKENS)
    mine = {page.name.hash: page for page in stored_pages(root) if page.name.ns_key == space.ns_key}
    assert set(mine) == {chain.page_hash(i) for i in range(10)}
    page = mine[chain.page_hash(3)]
    assert (page.name.position, page.page_tokens, page.num_bytes) == (3, 4, SLOT_BYTES)
    assert (page.name.parent, page.name.body) == (chain.page_hash(2), chain.page_body(3))


def test_a_summary_adds_up(store, root):
    summary = summarise(root)
    stats = store.stats().disk
    assert summary.num_segments == stats.num_segments
    assert summary.allocated_bytes == stats.allocated_bytes
    assert (summary.num_pages, summary.page_bytes) == (12, 12 * SLOT_BYTES)
    assert sorted(summary.namespaces.values()) == [2, 10]
    (root / f"{'ab' * 16}.kvd").write_bytes(b"")
    assert summarise(root).num_foreign_segments == 1
    store.close()
    assert summarise(root).written_last_day_bytes >= summary.page_bytes


def test_verify_finds_and_scrub_frees_what_is_bad(store, root):
    assert verify(root).bad == ()
    assert verify(root).num_pages == 12
    space = space_of(store)
    chain = space.chain(TOKENS)
    doomed = next(page for page in stored_pages(root) if page.name.hash == chain.page_hash(6))
    flip(root, doomed)
    before = sorted(path.stat().st_mtime_ns for path in root.glob("*.kvd"))
    found = verify(root)
    assert found.bad == (doomed,)
    assert (found.num_pages, found.num_bytes, found.num_freed) == (12, 12 * SLOT_BYTES, 0)
    assert sorted(path.stat().st_mtime_ns for path in root.glob("*.kvd")) == before
    assert verify(root, scrub=True).num_freed == 1
    assert verify(root).bad == ()
    look(store)
    assert store._disk.count(space.ns_key, chain) == 6
    crowd_out(store)
    assert loaded(space, chain) == 24


def test_a_namespace_is_dropped_under_a_running_store(store, root):
    space = space_of(store)
    assert drop(root, space.ns_key[:6]) == 10
    look(store)
    assert store._disk.count(space.ns_key, space.chain(TOKENS)) == 0
    bob = space_of(store, "bob")
    assert store._disk.count(bob.ns_key, bob.chain(TOKENS)) == 2
    assert drop(root) == 2
    assert summarise(root).num_pages == 0
    fill(space, [*TOKENS, *range(8)])
    assert store.flush().result(30)
    crowd_out(store)
    assert loaded(space, space.chain([*TOKENS, *range(8)])) == 48


def test_what_is_no_store_is_refused_and_not_made_one(root):
    with pytest.raises(ValueError, match="root must be a directory"):
        summarise(root)
    root.mkdir(mode=0o700)
    for call in (summarise, verify, drop):
        with pytest.raises(ValueError, match=r"a store has written to.*got .*, which has none"):
            call(root)
    assert list(root.iterdir()) == []
