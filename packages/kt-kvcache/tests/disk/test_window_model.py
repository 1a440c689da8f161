# SPDX-License-Identifier: Apache-2.0
"""Random calls on a store with a window group, with restarts, damage and pages that disk or memory
lose, against a set that says what was computed and what must be found.

Memory starts as poison and is small: what a model may read of a lease is compared byte by byte.
"""

import time
from contextlib import suppress

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kt_kvcache import OutOfPages

from .known_pages import IDENTITY
from .sim_files import SimDisk, SimFiles
from .sim_store import RANDOM_CALLS, sim_store
from .windowed_pages import GEOMETRY, SLOT_BYTES, assert_right, content, fill, poisoned_arena

pytestmark = pytest.mark.timeout(600)

NUM_PAGES = 24
# A prompt is a path of up to 8 pages that may leave the common one after 3.
prompts = st.tuples(st.integers(1, 8), st.sampled_from([3, 8])).map(
    lambda path: [int(turn >= path[1]) for turn in range(path[0]) for _ in range(4)]
)


class WindowMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.disk = SimDisk()
        self.open()
        self.written: set[tuple[int, ...]] = set()
        self.must: set[tuple[int, ...]] = set()  # on disk, and nothing happened
        self.damaged = False  # a page nobody looked at since may not be what it should be
        self.leases = []

    def open(self):
        self.store = sim_store(
            SimFiles(self.disk),
            num_pages=NUM_PAGES,
            disk_pages=64,
            arena=poisoned_arena(NUM_PAGES),
            slot_bytes=SLOT_BYTES,
        )
        self.space = self.store.space(IDENTITY, GEOMETRY)

    @rule(tokens=prompts, flush=st.integers(0, 3).map(bool))
    def compute(self, tokens, flush):
        prefixes = {tuple(tokens[:end]) for end in range(4, len(tokens) + 1, 4)}
        self.written |= prefixes
        with suppress(OutOfPages):
            chain = fill(self.space, tokens)
            flushed = flush and self.store.flush().result(30)
            if flushed and self.store._disk.count(self.space.ns_key, chain) == chain.num_pages:
                self.must |= set() if self.damaged else prefixes

    @rule(tokens=prompts, tail=st.booleans(), limit=st.integers(1, 32), crowd=st.booleans())
    def find(self, tokens, tail, limit, crowd):
        if crowd:
            self.crowd_out()
        chain = self.space.chain(tokens)
        with self.space.acquire(chain, max_tokens=limit, tail=tail) as lease:
            assert_right(lease, chain)
            result = lease.load().result(30)
            assert_right(lease, chain)
            assert lease.num_tokens <= limit
            found = lease.num_tokens
            assert found == 0 or tuple(tokens[:found]) in self.written
            if lease.tail is not None:
                self.check_tail(lease, chain)
            if not self.leases and result.reason != "memory":
                promised = [
                    p for p in self.must if p == tuple(tokens[: len(p)]) and len(p) <= limit
                ]
                assert found >= max(map(len, promised), default=0)

    @rule(
        stored=prompts,
        lengths=st.lists(st.integers(1, 8), min_size=1, max_size=3),
        hurt=st.none() | st.tuples(st.integers(0, 9), st.sampled_from([0, SLOT_BYTES - 1])),
    )
    def load_some(self, stored, lengths, hurt):
        """Long prefixes, shorter ones and again longer ones, after memory has lost all."""
        self.compute(stored, flush=True)
        self.crowd_out()
        if hurt:
            self.damage(*hurt, bit=0)
        for length in lengths:
            self.find(stored[: 4 * length], tail=False, limit=32, crowd=False)

    @staticmethod
    def check_tail(lease, chain):
        """The tail, and with it what its own window reaches back to, is whole."""
        tail = lease._tail[0]
        for layer in range(3):
            assert (lease.tail_view().page(layer, 0) == content(tail.hash, layer)).all()
        start = (lease.num_tokens + lease.tail.num_tokens - 6) // 4
        for i in range(max(0, start), lease.num_pages):
            assert (lease.view().page(2, i) == content(chain.page_hash(i), 2)).all()

    @rule(tokens=prompts, cancel=st.booleans())
    def hold(self, tokens, cancel):
        chain = self.space.chain(tokens)
        lease = self.space.acquire(chain)
        load = lease.load()
        if cancel:
            load.cancel()
        self.leases.append((lease, chain, load))

    @rule()
    def let_go(self):
        if self.leases:
            lease, chain, load = self.leases.pop(0)
            load.result(30)
            assert_right(lease, chain)
            lease.release()

    @rule()
    def crowd_out(self):
        self.store.flush(durable=False).result(30)
        with suppress(OutOfPages):
            writer = self.space.reserve(self.space.chain([]), 0, NUM_PAGES)
            for i in range(NUM_PAGES):
                for layer in range(3):
                    writer.view().page(layer, i)[:] = 0xEE
            writer.release()

    @rule()
    def disk_forgets(self):
        self.store.flush(durable=False).result(30)
        self.must.clear()
        self.store._disk.drop(self.space.ns_key, None).result(30)
        self.damaged = False

    @rule(slot=st.integers(0, 11), at=st.sampled_from([0, SLOT_BYTES - 1]), bit=st.integers(0, 7))
    def damage(self, slot, at, bit):
        self.store.flush(durable=False).result(30)
        self.must.clear()
        self.damaged = True
        with self.disk.lock:
            for name in sorted(self.disk.names):
                payload = self.disk.names[name].content
                if name.endswith(".kvs") and slot * SLOT_BYTES + at < len(payload):
                    payload[slot * SLOT_BYTES + at] ^= 1 << bit

    @rule()
    def restart(self):
        self.release_all()
        self.store.close()
        self.open()

    @invariant()
    def nothing_is_lost(self):
        self.store.check_integrity()

    def release_all(self):
        while self.leases:
            self.let_go()

    def teardown(self):
        self.release_all()
        self.store.flush(durable=False).result(30)
        give_up = time.monotonic() + 30  # what a cancelled load still reads is given back later
        while (stats := self.store.stats()).reserved_pages and time.monotonic() < give_up:
            time.sleep(0.001)
        assert (stats.open_leases, stats.open_writers, stats.reserved_pages) == (0, 0, 0)
        assert not self.store._tier._completing
        self.store.close()


TestWindowMachine = WindowMachine.TestCase
TestWindowMachine.settings = RANDOM_CALLS
