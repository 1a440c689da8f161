# SPDX-License-Identifier: Apache-2.0
"""Stores and spaces for the tests: pages of 2 tokens, 2 layers, 8 bytes per page and layer."""

from collections.abc import Callable, Iterator

import pytest

from kt_kvcache import Arena, Geometry, Group, Identity, KVStore, Space, StoreConfig, Writer

PAGE_TOKENS = 2


@pytest.fixture
def identity() -> Identity:
    return Identity(weights="digest", kv_format="uint8")


@pytest.fixture
def geometry() -> Geometry:
    return Geometry(PAGE_TOKENS, (Group("kv", num_layers=2, bytes_per_page=8),))


@pytest.fixture
def store() -> Iterator[KVStore]:
    arena = Arena.allocate(num_pages=8, strides=[8, 8])
    with KVStore.open(config=StoreConfig(8, PAGE_TOKENS), arena=arena) as store:
        yield store
        store.check_integrity()


@pytest.fixture
def space(store: KVStore, identity: Identity, geometry: Geometry) -> Space:
    return store.space(identity, geometry)


@pytest.fixture
def fill(space: Space) -> Callable[..., Writer]:
    """Publishes all full pages of a token sequence from `first_page` on; returns the writer."""

    def fill(tokens: list[int], first_page: int = 0) -> Writer:
        chain = space.chain(tokens)
        writer = space.reserve(chain, first_page, chain.num_pages - first_page)
        writer.commit(chain.num_pages - first_page, after=None)
        return writer

    return fill
