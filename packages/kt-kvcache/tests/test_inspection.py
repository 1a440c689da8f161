# SPDX-License-Identifier: Apache-2.0
"""A root seen from outside, beside a store that uses it."""

from pathlib import Path

import numpy as np
import pytest

from kt_kvcache import Arena, Geometry, Group, Identity, KVStore, Space, StoreConfig
from kt_kvcache.disk.inspection import Inspection

TOKENS = list(range(24))  # six pages of 4


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def open_store(root: Path) -> tuple[KVStore, np.ndarray]:
    kv = np.zeros((32, 4, 2048), np.uint8)
    config = StoreConfig(num_pages=32, page_tokens=4, disk_bytes=8 << 20, min_free_bytes=0)
    return KVStore.open(root, config=config, arena=Arena([kv])), kv


def space_of(store: KVStore, tenant: str) -> Space:
    geometry = Geometry(page_tokens=4, groups=(Group("kv", 1, 8192),))
    return store.space(Identity(weights="w", kv_format="u8"), geometry, tenant)


def write(store: KVStore, kv: np.ndarray, tenant: str, tokens: list[int]) -> None:
    space = space_of(store, tenant)
    chain = space.chain(tokens)
    with space.reserve(chain, 0, chain.num_pages) as writer:
        for i, page_id in enumerate(writer.page_ids):
            kv[page_id] = tokens[4 * i] + 1
        writer.commit(chain.num_pages, after=None)
    assert store.flush().result(60)


def flip(root: Path) -> None:
    """A bit of every page's payload."""
    for file in root.glob("*.kvs"):
        content = np.frombuffer(file.read_bytes(), np.uint8).copy()
        content[::4096] ^= 1
        with file.open("r+b") as opened:
            opened.write(content.tobytes())


def found(store: KVStore, tenant: str, tokens: list[int]) -> int:
    space = space_of(store, tenant)
    with space.acquire(space.chain(tokens)) as lease:
        lease.load().result(60)
        return lease.num_tokens


def test_what_a_root_holds(root: Path) -> None:
    store, kv = open_store(root)
    with store:
        write(store, kv, "a", TOKENS)
        write(store, kv, "b", [9] * 8)
        with Inspection(root) as inspection:
            info = inspection.info()
            keys = {space_of(store, t).ns_key: n for t, n in (("a", 6), ("b", 2))}
            assert {s.ns_key: s.num_pages for s in info.namespaces} == keys
            assert {s.num_prefixes for s in info.namespaces} == {1}
            assert {s.page_tokens for s in info.namespaces} == {4}
            assert info.page_bytes == 8 * 8192 == sum(s.num_bytes for s in info.namespaces)
            assert info.page_bytes < info.allocated_bytes <= 8 << 20
            assert (info.num_segments, info.unreadable_segments) == (1, 0)
            assert info.namespaces[0].newest_ns >= info.namespaces[1].newest_ns > 1e18


def test_verifying_finds_damage_and_scrubbing_forgets_it(root: Path) -> None:
    store, kv = open_store(root)
    with store:
        write(store, kv, "a", TOKENS)
    with Inspection(root) as inspection:
        assert inspection.verify().bad_pages == 0
        assert inspection.verify(drop_bad=True).num_pages == 6
        flip(root)
        result = inspection.verify()
        assert (result.num_pages, result.num_bytes, result.bad_pages) == (6, 6 * 8192, 6)
        assert inspection.verify(drop_bad=True).bad_pages == 6
        assert inspection.verify().num_pages == 0
    store, kv = open_store(root)
    with store:
        assert found(store, "a", TOKENS) == 0
        assert store.stats().disk.counters.checksum_misses == 0
        write(store, kv, "a", TOKENS)  # their places are free
    with Inspection(root) as inspection:
        assert inspection.verify().bad_pages == 0


@pytest.mark.parametrize("alive", [False, True])
def test_a_dropped_namespace_does_not_come_back(root: Path, alive: bool) -> None:
    store, kv = open_store(root)
    write(store, kv, "a", TOKENS)
    write(store, kv, "b", TOKENS)
    ns_key = space_of(store, "a").ns_key
    if not alive:
        store.close()
    with Inspection(root) as inspection:
        assert inspection.drop(ns_key) == 6
        assert inspection.drop(ns_key) == 0
        assert [s.num_pages for s in inspection.info().namespaces] == [6]
    store.close()
    store, kv = open_store(root)
    with store:
        assert found(store, "a", TOKENS) == 0
        assert found(store, "b", TOKENS) == 24
    with Inspection(root) as inspection:
        assert inspection.drop(None) == 6
        assert inspection.info().namespaces == ()


def test_only_a_store_is_opened_and_none_is_made(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"\[kvstore.inspect\] root must hold a store; got"):
            Inspection(path)
    assert list(tmp_path.iterdir()) == []
