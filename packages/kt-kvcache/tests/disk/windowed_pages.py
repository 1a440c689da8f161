# SPDX-License-Identifier: Apache-2.0
"""Pages with a window group for the tests: 4 tokens, 64 KiB of each group. What a page must hold
follows from its hash; what it need not is never looked at, and poison at first.
"""

import numpy as np

from kt_kvcache import Arena, Chain, Geometry, Group, Lease, Space, WindowGroup

PAGE_TOKENS = 4
HEAD_BYTES = 64 << 10  # the least that has a checksum of its own
STRIDES = (HEAD_BYTES // 2, HEAD_BYTES // 2, HEAD_BYTES)
SLOT_BYTES = sum(STRIDES)
WINDOW = 6  # tokens: 2 pages if a prefix ends with a page, else up to 3
WHOLE_PAGES = 3
GEOMETRY = Geometry(
    PAGE_TOKENS, (Group("full", 2, STRIDES[0]), WindowGroup("window", 1, STRIDES[2], WINDOW))
)
POISON = 0xEE


def poisoned_arena(num_pages: int) -> Arena:
    return Arena([np.full((num_pages, stride), POISON, np.uint8) for stride in STRIDES])


def content(page_hash: bytes, layer: int) -> np.ndarray:
    word = np.frombuffer(page_hash[layer : layer + 8], np.uint8)
    return np.tile(word, STRIDES[layer] // 8)


def fill(space: Space, tokens: list[int]) -> Chain:
    """Writes all full pages of a token sequence that memory cannot serve, and publishes them."""
    chain = space.chain(tokens)
    with space.acquire(chain) as lease:
        first = lease.num_pages
        if first < chain.num_pages:
            with space.reserve(chain, first, chain.num_pages - first) as writer:
                for i in range(writer.num_pages):
                    for layer in range(len(STRIDES)):
                        page = writer.view().page(layer, i)
                        page[:] = content(chain.page_hash(first + i), layer)
                writer.commit(writer.num_pages, after=None)
    return chain


def assert_right(lease: Lease, chain: Chain) -> None:
    """All that a model may read of a leased prefix is what was written."""
    view = lease.view()
    for i in range(lease.num_pages):
        in_window = (i + 1) * PAGE_TOKENS > lease.num_tokens - WINDOW
        for layer in range(3 if in_window else 2):
            assert (view.page(layer, i) == content(chain.page_hash(i), layer)).all(), (i, layer)


def loaded(space: Space, chain: Chain) -> int:
    """Tokens that acquire and load give together, all of them right."""
    with space.acquire(chain) as lease:
        lease.load().result(30)
        assert_right(lease, chain)
        return lease.num_tokens
