# SPDX-License-Identifier: Apache-2.0
"""Opens stores on one root, as several processes would."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kt_kvcache import Arena, KVStore, StoreConfig

from .known_pages import PAGE_TOKENS, SLOT_BYTES, STRIDES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def open_store(root: Path) -> Iterator[Callable[..., KVStore]]:
    """Opens stores on the same root, each as a process of its own would; closes what is left."""
    stores = []

    def open_store(num_pages: int = 32, disk_pages: int = 64, **config: float | str) -> KVStore:
        arena = Arena.allocate(num_pages, STRIDES)
        # A record and a share of the headers come with each page.
        config = {"disk_bytes": disk_pages * (SLOT_BYTES + 520) + 8 * 4096} | config
        store = KVStore.open(
            root,
            config=StoreConfig(num_pages, PAGE_TOKENS, **({"min_free_bytes": 0} | config)),
            arena=arena,
        )
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        store.close()
