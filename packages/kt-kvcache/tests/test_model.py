# SPDX-License-Identifier: Apache-2.0
"""Random calls against a dict that says what must be cached, with every page's bytes checked.

The arena is really written: reserved pages with poison, committed ones with bytes derived from
their hash. After each step all pages that any open handle may read hold exactly these bytes.
"""

import hashlib
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kt_kvcache import (
    Arena,
    Chain,
    Extra,
    Geometry,
    Group,
    Identity,
    KVStore,
    Lease,
    OutOfPages,
    PageState,
    Space,
    StaleHandle,
    StoreConfig,
    Stored,
    Writer,
)

# A passing run takes seconds; after a failure Hypothesis may shrink it for five minutes.
pytestmark = pytest.mark.timeout(600)

NUM_PAGES, PAGE_TOKENS = 9, 2
STRIDES = (8, 20)  # of a layer with attention to all tokens and of one with another kind
NUM_LAYERS = len(STRIDES)
POISON = 0xEE
IDENTITY = Identity(weights="w", kv_format="uint8")
GEOMETRY = Geometry(PAGE_TOKENS, tuple(Group(f"{n}", 1, n) for n in STRIDES))
NAMESPACES = [
    (IDENTITY, "alice"),
    (IDENTITY, "bob"),
    (IDENTITY, None),
    (replace(IDENTITY, weights="other"), "alice"),
]

tokens = st.lists(st.integers(0, 1), max_size=8)
extras = st.sampled_from([(), (), (Extra(0, 1, b"cat"),), (Extra(0, 1, b"dog"),)])
picks = st.integers(0, 10**6)


def content(page_hash: bytes, layer: int) -> np.ndarray:
    digest = hashlib.sha256(page_hash + bytes([layer])).digest()
    return np.frombuffer(digest[: STRIDES[layer]], np.uint8)


def path(chain: Chain, num_pages: int) -> tuple[bytes, ...]:
    return tuple(chain.page_hash(i) for i in range(num_pages))


@dataclass
class Open:
    """A handle not released yet, with what its pages must hold."""

    handle: Lease | Writer
    space: int
    chain: Chain
    page_ids: tuple[int, ...]
    hashes: list[bytes | None]  # per page; None: poison
    protects: set[bytes]  # pages that must not be evicted while this is open
    stale: bool = False


class Kernel:
    """An event before which the pages are written, perhaps by a kernel that then fails."""

    def __init__(self, write, fails: bool):
        self.write, self.fails = write, fails

    def synchronize(self):
        self.write()
        if self.fails:
            raise RuntimeError("kernel failed")


class StoreMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.arena = Arena.allocate(NUM_PAGES, STRIDES)
        config = StoreConfig(NUM_PAGES, PAGE_TOKENS)
        self.now = 0.0
        self.store = KVStore.open(config=config, arena=self.arena, clock=lambda: self.now)
        self.spaces = [self.make_space(i) for i in range(len(NAMESPACES))]
        self.ns_keys = {space.ns_key for space in self.spaces}
        self.cached: dict[bytes, tuple[int, Chain]] = {}  # the oracle: hash -> where to find it
        self.open: list[Open] = []
        self.events = self.store.events()
        self.told: set[bytes] = set()  # what the events say is cached
        self.kept: dict[bytes, float] = {}
        self.num_evicted = 0

    def make_space(self, i: int) -> Space:
        identity, tenant = NAMESPACES[i]
        return self.store.space(identity, GEOMETRY, tenant=tenant)

    def make_chain(self, space: int, tokens: list[int], extras: tuple[Extra, ...]) -> Chain:
        return self.spaces[space].chain(tokens, extras if tokens else ())

    def num_cached(self, chain: Chain, limit: int | None = None) -> int:
        num_pages = chain.num_pages if limit is None else min(limit, chain.num_pages)
        for i in range(num_pages):
            if chain.page_hash(i) not in self.cached:
                return i
        return num_pages

    def pick(self, pick: int, kind: type) -> Open | None:
        found = [entry for entry in self.open if isinstance(entry.handle, kind)]
        return found[pick % len(found)] if found else None

    def page(self, layer: int, page_id: int) -> np.ndarray:
        return self.arena.view((page_id,), writable=True).page(layer, 0)

    # Calls

    @rule(space=st.integers(0, 3), tokens=tokens, extras=extras)
    def probe(self, space, tokens, extras):
        chain = self.make_chain(space, tokens, extras)
        hit = self.spaces[space].probe(chain)
        assert hit.num_pages == self.num_cached(chain)
        assert hit.num_tokens == hit.num_pages * PAGE_TOKENS

    @rule(
        space=st.integers(0, 3),
        tokens=tokens,
        extras=extras,
        max_tokens=st.none() | st.integers(0, 9),
        tail=st.booleans(),
    )
    def acquire(self, space, tokens, extras, max_tokens, tail):
        self.acquire_checked(space, tokens, extras, max_tokens, tail)

    @precondition(lambda self: self.cached)
    @rule(pick=picks, end=st.lists(st.integers(0, 1), max_size=3))
    def acquire_what_parts_inside_a_cached_page(self, pick, end):
        space, other = self.cached[sorted(self.cached)[pick % len(self.cached)]]
        inputs = [self.page_input(other, i) for i in range(other.num_pages)]
        tokens = [token for page_tokens, _ in inputs for token in page_tokens][:-1] + end
        extras = [extra for _, page_extras in inputs for extra in page_extras]
        self.acquire_checked(space, tokens, tuple(extras), len(tokens) - 1, tail=True)

    def acquire_checked(self, space, tokens, extras, max_tokens, tail):
        chain = self.make_chain(space, tokens, extras)
        limit = None if max_tokens is None else max_tokens // PAGE_TOKENS
        expected = self.num_cached(chain, limit)
        lease = self.spaces[space].acquire(chain, max_tokens, tail=tail)
        assert lease.num_pages == expected
        hashes = list(path(chain, expected))
        page_ids = lease.page_ids
        if tail:
            num_left = chain.num_tokens if max_tokens is None else max_tokens
            found = self.check_tail(lease, chain, tokens, extras, num_left - lease.num_tokens)
            hashes += found
            page_ids += (lease.tail.page_id,) if found else ()
        self.open.append(Open(lease, space, chain, page_ids, hashes, set(hashes)))

    def check_tail(self, lease, chain, tokens, extras, max_tokens) -> list[bytes]:
        """The hash of the lease's tail, checked against every cached page it could have been."""
        rest = tokens[lease.num_tokens :]
        mine = [extra for extra in extras if extra.position >= lease.num_tokens and tokens]
        common = {}
        plain = not mine
        for page_hash, (_, other) in self.cached.items():
            i = other.num_pages - 1
            if i != lease.num_pages or other.parent_hash(i) != chain.parent_hash(i):
                continue
            theirs, their_extras = self.page_input(other, i)
            plain &= not their_extras
            common[page_hash] = 0
            if [(e.tag, e.data) for e in mine] == [(e.tag, e.data) for e in their_extras]:
                same = [a == b for a, b in zip(rest, theirs, strict=False)]
                num_common = [*same, False].index(False)
                common[page_hash] = max(0, min(num_common, max_tokens))
        best = max(common.values(), default=0)
        if lease.tail is None:
            assert best == 0 or not plain
            return []
        assert 1 <= lease.tail.num_tokens <= best
        assert lease.tail.num_tokens == best or not plain
        mine = [h for h, k in common.items() if k >= lease.tail.num_tokens]
        held = [h for h in mine if (self.page(0, lease.tail.page_id) == content(h, 0)).all()]
        assert len(held) == 1
        return held

    @rule(pick=picks, copy=st.booleans())
    def use_tail(self, pick, copy):
        found = [e for e in self.open if isinstance(e.handle, Lease) and not e.stale]
        found = [e for e in found if e.handle.tail is not None]
        if not found:
            return
        entry = found[pick % len(found)]
        lease, chain, tail_hash = entry.handle, entry.chain, entry.hashes[-1]
        num_tokens, stats = lease.tail.num_tokens, self.store.stats()
        if copy and stats.free_pages + stats.cached_pages:
            writer = self.spaces[entry.space].reserve(chain, lease.num_pages, 1)
            assert writer.copy_tail(lease) == num_tokens
            self.open.append(Open(writer, entry.space, chain, writer.page_ids, [tail_hash], set()))
        else:
            lease.release_tail()
        assert lease.tail is None
        entry.page_ids, entry.hashes = lease.page_ids, entry.hashes[:-1]
        entry.protects = set(entry.hashes)

    @rule(
        space=st.integers(0, 3),
        tokens=tokens,
        extras=extras,
        n=st.integers(1, 5),
        skip=st.sampled_from([0, 0, 0, 1]),
    )
    def reserve(self, space, tokens, extras, n, skip):
        chain = self.make_chain(space, tokens, extras)
        first_page = self.num_cached(chain) * skip
        before = self.store.stats()
        free, evictable = before.free_pages, before.cached_pages
        if free + evictable < n:
            with pytest.raises(OutOfPages, match=f"{n} requested, {free} free, {evictable} evic"):
                self.spaces[space].reserve(chain, first_page, n)
            assert self.store.stats() == before
            return
        writer = self.spaces[space].reserve(chain, first_page, n)
        num_evicted = self.store.stats().counters.evicted_pages - before.counters.evicted_pages
        assert num_evicted == max(0, n - before.free_pages)
        for layer in range(NUM_LAYERS):
            for page_id in writer.page_ids:
                self.page(layer, page_id)[:] = POISON
        self.open.append(Open(writer, space, chain, writer.page_ids, [None] * n, set()))

    @rule(pick=picks, tokens=tokens)
    def extend(self, pick, tokens):
        entry = self.pick(pick, Writer)
        if entry is not None:
            entry.chain.extend(tokens)

    @rule(pick=picks, n=st.integers(0, 5), late=st.booleans(), fails=st.integers(0, 9))
    def commit(self, pick, n, late, fails):
        entry = self.pick(pick, Writer)
        if entry is None or entry.stale:
            return
        writer, chain = entry.handle, entry.chain
        start = writer.first_page + writer.num_committed
        n = min(n, writer.num_pages - writer.num_committed, max(0, chain.num_pages - start))

        def write():
            for i in range(n):
                slot = writer.num_committed + i
                entry.hashes[slot] = chain.page_hash(start + i)
                for layer in range(NUM_LAYERS):
                    view = writer.view().page(layer, slot)
                    view[:] = content(chain.page_hash(start + i), layer)

        if late and fails == 0:
            before = writer.states
            with pytest.raises(RuntimeError, match="kernel failed"):
                writer.commit(n, after=Kernel(write, fails=True))
            assert writer.states == before
            return
        if not late:
            write()
        states = writer.commit(n, after=Kernel(write, fails=False) if late else None)
        for i, state in enumerate(states, start):
            page_hash = chain.page_hash(i)
            if page_hash in self.cached:
                assert state is PageState.PRESENT
            elif i == 0 or chain.page_hash(i - 1) in self.cached:
                assert state is PageState.PUBLISHED
                exact = self.prefix(entry.space, chain, i + 1)
                self.cached[page_hash] = (entry.space, exact)
            else:
                assert state is PageState.UNLINKED
                continue
            entry.protects |= set(path(chain, i + 1))

    def prefix(self, space: int, chain: Chain, num_pages: int) -> Chain:
        """Rebuilds the first pages of a chain from its bodies, as another caller would."""
        tokens, extras = [], []
        for i in range(num_pages):
            page_tokens, page_extras = self.page_input(chain, i)
            tokens += page_tokens
            extras += page_extras
        prefix = self.spaces[space].chain(tokens, extras)
        assert prefix.page_hash(num_pages - 1) == chain.page_hash(num_pages - 1)
        return prefix

    def page_input(self, chain: Chain, i: int) -> tuple[list[int], list[Extra]]:
        body = chain.page_body(i)
        tokens = np.frombuffer(body, "<u4", PAGE_TOKENS, 4).tolist()
        has_extra = body[12:14] != b"\0\0"
        return tokens, [Extra(i * PAGE_TOKENS, body[14], body[23:])] if has_extra else []

    @precondition(lambda self: self.open)
    @rule(pick=picks, twice=st.booleans())
    def release(self, pick, twice):
        entry = self.open.pop(pick % len(self.open))
        entry.handle.release()
        if twice:
            entry.handle.release()
        with pytest.raises(StaleHandle):
            entry.handle.page_ids  # noqa: B018 (the access is what must raise)

    @precondition(lambda self: self.open)
    @rule(pick=picks)
    def leak(self, pick):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            self.open.pop(pick % len(self.open))  # the last reference: finalised here

    @rule(space=st.integers(0, 3), tokens=tokens, extras=extras)
    def drop_chain(self, space, tokens, extras):
        chain = self.make_chain(space, tokens, extras)
        if not chain.num_pages:
            return
        top = chain.page_hash(chain.num_pages - 1)
        doomed = {
            page_hash
            for page_hash, (_, other) in self.cached.items()
            if top in path(other, other.num_pages)
        }
        if self.num_cached(chain) < chain.num_pages:
            doomed = set()
        assert self.spaces[space].drop(chain) == len(doomed)
        self.forget(doomed)

    def forget(self, doomed: set[bytes]) -> None:
        """Dropped pages: whoever held them still has their bytes, but nothing in the index."""
        for page_hash in doomed:
            del self.cached[page_hash]
            self.kept.pop(page_hash, None)
        for entry in self.open:
            entry.protects -= doomed

    @rule(space=st.integers(0, 3), really=st.integers(0, 3))
    def drop_space(self, space, really):
        if really:  # once in four, else little would ever be cached
            return
        mine = [h for h, (owner, _) in self.cached.items() if owner == space]
        assert self.spaces[space].drop() == len(mine)
        self.forget(set(mine))
        self.spaces[space] = self.make_space(space)
        for entry in self.open:
            entry.stale |= entry.space == space

    @rule(space=st.integers(0, 3), tokens=tokens, extras=extras, ttl_s=st.integers(0, 5))
    def keep(self, space, tokens, extras, ttl_s):
        chain = self.make_chain(space, tokens, extras)
        num_pages = self.num_cached(chain)
        assert self.spaces[space].keep(chain, ttl_s) == num_pages * PAGE_TOKENS
        for page_hash in path(chain, num_pages):
            self.kept[page_hash] = self.now + ttl_s

    @rule(seconds=st.integers(1, 5))
    def wait(self, seconds):
        self.now += seconds

    def spared(self) -> set[bytes]:
        """Cached pages that are kept, or have a kept one below."""
        kept = {h for h, until in self.kept.items() if h in self.cached and until > self.now}
        return {h for k in kept for h in path(self.cached[k][1], self.cached[k][1].num_pages)}

    # What must hold after each

    @invariant()
    def nothing_vanishes_but_by_eviction_of_what_nobody_holds(self):
        evicted = self.store.stats().counters.evicted_pages
        gone = {
            page_hash
            for page_hash, (space, chain) in self.cached.items()
            if self.spaces[space].probe(chain).num_pages < chain.num_pages
        }
        assert len(gone) == evicted - self.num_evicted
        for entry in self.open:
            assert entry.stale or not gone & entry.protects
        if gone & self.spared():  # then nothing else was left to evict
            held = {h for entry in self.open for h in entry.protects}
            assert self.cached.keys() - gone <= held | self.spared()
        for page_hash in gone:
            del self.cached[page_hash]
            self.kept.pop(page_hash, None)
        self.num_evicted = evicted
        self.events_tell_what_is_cached()

    def events_tell_what_is_cached(self):
        for event in self.events.poll():
            assert event.parent_hash in self.told or event.parent_hash in self.ns_keys
            if isinstance(event, Stored):
                assert event.page_hash not in self.told
                self.told.add(event.page_hash)
            else:
                self.told.remove(event.page_hash)
        assert self.told == self.cached.keys()
        assert self.events.num_dropped == 0

    @invariant()
    def every_open_handle_reads_its_own_bytes(self):
        for entry in self.open:
            for page_id, page_hash in zip(entry.page_ids, entry.hashes, strict=True):
                for layer in range(NUM_LAYERS):
                    expected = POISON if page_hash is None else content(page_hash, layer)
                    assert (self.page(layer, page_id) == expected).all()

    @invariant()
    def stale_handles_say_so(self):
        for entry in self.open:
            if entry.stale:
                with pytest.raises(StaleHandle, match="dropped"):
                    entry.handle.view()

    @invariant()
    def pages_and_handles_are_conserved(self):
        self.store.check_integrity()
        stats = self.store.stats()
        pages = (stats.free_pages, stats.cached_pages, stats.pinned_pages, stats.reserved_pages)
        assert sum(pages) == NUM_PAGES
        assert min(pages) >= 0
        num_leases = sum(isinstance(entry.handle, Lease) for entry in self.open)
        assert (stats.open_leases, stats.open_writers) == (
            num_leases,
            len(self.open) - num_leases,
        )
        held = {page_hash for entry in self.open for page_hash in entry.protects}
        assert stats.cached_pages == len(self.cached.keys() - held)
        if not self.open:
            assert stats.cached_pages == len(self.cached)
            assert stats.free_pages == NUM_PAGES - len(self.cached)

    def teardown(self):
        for entry in self.open:
            entry.handle.release()
        self.open.clear()
        self.pages_and_handles_are_conserved()
        self.store.close()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=80,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
