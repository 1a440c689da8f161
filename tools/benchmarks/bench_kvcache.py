# SPDX-License-Identifier: Apache-2.0
"""kt-kvcache: hashing a prompt, finding and pinning it, the life of a writer, copies of pages; no
drive (tools/measure_kvcache.py).
"""

import os

import numpy as np

from kt_kvcache import Arena, Geometry, Group, Identity, KVStore, StoreConfig
from kt_kvcache.page_mover import open_page_mover

from .inputs import Warm

PAGE_TOKENS = 64
NUM_TOKENS = 131072
NUM_PAGES = NUM_TOKENS // PAGE_TOKENS
IDENTITY = Identity(weights="benchmark", kv_format="bfloat16")
GEOMETRY = Geometry(PAGE_TOKENS, (Group("kv", num_layers=1, bytes_per_page=1),))


def make_tokens(num_tokens: int) -> list[int]:
    return np.random.default_rng(0).integers(0, 150_000, num_tokens).tolist()


class Chain(Warm):
    """A prompt of 131072 tokens, and one more turn of 1024."""

    def prepare(self):
        self.store = KVStore.open(config=StoreConfig(1, PAGE_TOKENS))
        self.space = self.store.space(IDENTITY, GEOMETRY)
        self.tokens = make_tokens(NUM_TOKENS)
        self.array = np.array(self.tokens, np.uint32)
        self.turn = make_tokens(1024)

    def time_cold_chain_from_list(self):
        self.space.chain(self.tokens)

    def time_cold_chain_from_array(self):
        self.space.chain(self.array)

    def time_extend_by_1024(self):
        self.space.chain(()).extend(self.turn)


class Lookup(Warm):
    """A cached prompt of 2048 pages."""

    def prepare(self):
        self.store = KVStore.open(config=StoreConfig(NUM_PAGES, PAGE_TOKENS))
        self.space = self.store.space(IDENTITY, GEOMETRY)
        self.chain = self.space.chain(make_tokens(NUM_TOKENS))
        with self.space.reserve(self.chain, 0, NUM_PAGES) as writer:
            writer.commit(NUM_PAGES, after=None)

    def time_probe_2048_pages(self):
        self.space.probe(self.chain)

    def time_acquire_and_release_2048_pages(self):
        self.space.acquire(self.chain).release()


class Cycle(Warm):
    """Reserve, commit and release of 16 new pages in a full store: each page evicts one."""

    num_pages = 16

    def prepare(self):
        self.store = KVStore.open(config=StoreConfig(NUM_PAGES, PAGE_TOKENS))
        self.space = self.store.space(IDENTITY, GEOMETRY)
        # More prompts than fit, in turn: each is evicted before it comes again.
        prompts = range(2 * NUM_PAGES // self.num_pages)
        self.chains = [self.space.chain([i] * self.num_pages * PAGE_TOKENS) for i in prompts]
        self.turn = 0
        for _ in prompts:
            self.cycle()

    def time_reserve_commit_release_16_pages(self):
        self.cycle()

    def cycle(self):
        chain = self.chains[self.turn % len(self.chains)]
        self.turn += 1
        with self.space.reserve(chain, 0, self.num_pages) as writer:
            writer.commit(self.num_pages, after=None)


class PageBytes(Warm):
    """64 pages of 16 layers, 64 MiB, in an order of their own."""

    def prepare(self):
        strides = [65536] * 16
        order = [tuple(np.random.default_rng(i).permutation(64).tolist()) for i in range(2)]
        self.pages = Arena.allocate(64, strides).view(order[0], writable=False)
        self.sink = Arena.allocate(64, strides).view(order[1], writable=True)
        self.mover = open_page_mover(1)
        fds = np.full(64, os.open("/dev/null", os.O_WRONLY), np.int32)
        self.batch = (fds, np.zeros(64, np.uint64), np.zeros(64, np.uint64), 1 << 20)

    def time_copy_64_mib(self):
        self.pages.copy_to(self.sink)

    def time_gather_64_mib_with_checksums(self):
        self.mover.write(self.pages, *self.batch).result()
