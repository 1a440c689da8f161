# SPDX-License-Identifier: Apache-2.0
"""Pages for the tests of the disk: 4 tokens, two layers of different sizes, 8 KiB on disk. What a
page must hold follows from its hash.
"""

import hashlib

import numpy as np

from kt_kvcache import Chain, Geometry, Group, Identity, KVStore, Lease, Space

PAGE_TOKENS = 4
STRIDES = (3000, 5000)
SLOT_BYTES = 8192
GEOMETRY = Geometry(PAGE_TOKENS, (Group("a", 1, STRIDES[0]), Group("b", 1, STRIDES[1])))
IDENTITY = Identity(weights="w", kv_format="uint8")


def content(page_hash: bytes, layer: int) -> np.ndarray:
    size = STRIDES[layer]
    block = hashlib.sha256(page_hash + bytes([layer])).digest()
    return np.frombuffer((block * (size // 32 + 1))[:size], np.uint8)


def space_of(store: KVStore, tenant: str | None = "alice") -> Space:
    return store.space(IDENTITY, GEOMETRY, tenant)


def fill(space: Space, tokens: list[int]) -> Chain:
    """Writes all full pages of a token sequence that are not in memory, and publishes them."""
    chain = space.chain(tokens)
    with space.acquire(chain) as lease:
        first = lease.num_pages
        if first < chain.num_pages:
            with space.reserve(chain, first, chain.num_pages - first) as writer:
                view = writer.view()
                for i in range(writer.num_pages):
                    for layer in range(2):
                        view.page(layer, i)[:] = content(chain.page_hash(first + i), layer)
                writer.commit(writer.num_pages, after=None)
    return chain


def crowd_out(store: KVStore) -> None:
    """Has other pages take all of a memory of 32 pages."""
    fill(space_of(store), [9] * 128)
    store.flush(durable=False).result(30)  # what is being written cannot be evicted


def assert_right(lease: Lease, chain: Chain) -> None:
    view = lease.view()
    for i in range(lease.num_pages):
        for layer in range(2):
            assert (view.page(layer, i) == content(chain.page_hash(i), layer)).all()


def loaded(space: Space, chain: Chain, timeout: float = 30) -> int:
    """Tokens that acquire and load give together, all of them right."""
    with space.acquire(chain) as lease:
        lease.load().result(timeout)
        assert_right(lease, chain)
        return lease.num_tokens
