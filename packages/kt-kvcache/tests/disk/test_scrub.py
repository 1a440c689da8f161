# SPDX-License-Identifier: Apache-2.0
"""Pages that go bad while nobody reads them."""

import time

import numpy as np
import pytest

from kt_kvcache import Completion
from kt_kvcache.disk import scrub
from kt_kvcache.disk.segment import SLOTS
from kt_kvcache.page_mover import CHECKSUM

from .known_pages import SLOT_BYTES, crowd_out, fill, loaded, space_of
from .sim_files import SimDisk, SimFiles
from .sim_store import sim_store

A, B = (list(range(start, start + 40)) for start in (0, 100))


@pytest.fixture
def disk():
    return SimDisk()


@pytest.fixture
def store(disk, monkeypatch):
    """It has not begun to scrub; each test says when."""
    monkeypatch.setattr(scrub, "_BATCH_BYTES", 4 * SLOT_BYTES)
    monkeypatch.setattr("kt_kvcache.disk.worker._IDLE_AFTER_S", 0.0)
    store = sim_store(SimFiles(disk))
    yield store
    store.check_integrity()
    store.close()


def idle(store, seconds):
    """As if nothing else was to be done for so long."""
    for _ in range(seconds):
        store._disk._worker._call(store._disk._scrub.step, Completion(), None)
        store.flush(durable=False).result(30)
        running = store._disk._scrub._running
        if running is not None:
            running.result(30)


def begin(store):
    """As if the last round was a day ago."""
    store._disk._scrub._begin_at = 0.0


def damage(store, disk, page_hash):
    """Flips a bit of a page, wherever it lies: the names of segments are random."""
    pages = store._disk._pages
    segment, slot = pages.locate(pages._index.by_hash[page_hash].page_id)
    disk.names[segment.name + SLOTS].content[slot * SLOT_BYTES + 100] ^= 1


@pytest.mark.parametrize("page", [6, 9])  # in the first and in the second segment
def test_a_page_that_went_bad_is_forgotten_before_anybody_asks(store, disk, monkeypatch, page):
    monkeypatch.setattr("kt_kvcache.disk.worker._REFRESH_S", 0.005)
    store._disk._worker._next_refresh = 0.0
    space = space_of(store)
    chain = fill(space, A)
    store.flush().result(30)
    damage(store, disk, chain.page_hash(page))
    begin(store)
    give_up = time.monotonic() + 30
    while not store.stats().disk.counters.checksum_misses:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    crowd_out(store)
    assert loaded(space, chain) == 4 * page
    assert store.stats().disk.counters.checksum_misses == 1


def test_a_store_whose_engine_computes_is_not_idle(store, monkeypatch):
    monkeypatch.setattr("kt_kvcache.disk.worker._IDLE_AFTER_S", 3600.0)
    monkeypatch.setattr("kt_kvcache.disk.worker._REFRESH_S", 0.005)
    store._disk._worker._next_refresh = 0.0
    fill(space_of(store), A)
    store.flush().result(30)
    begin(store)
    time.sleep(0.1)  # time to look around twenty times
    assert store.stats().disk.counters.scrubbed_pages == 0
    store._disk._worker._idle_at = 0.0  # an hour later
    give_up = time.monotonic() + 30
    while not store.stats().disk.counters.scrubbed_pages:
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_round_reads_each_page_once_and_then_rests(store, monkeypatch):
    fill(space_of(store), A)
    fill(space_of(store, "bob"), B)
    store.flush().result(30)
    begin(store)
    idle(store, 6)
    counters = store.stats().disk.counters
    assert (counters.scrubbed_pages, counters.loaded_pages, counters.checksum_misses) == (20, 0, 0)
    idle(store, 6)
    assert store.stats().disk.counters.scrubbed_pages == 20
    begin(store)
    idle(store, 6)
    assert store.stats().disk.counters.scrubbed_pages == 40


def test_nothing_is_scrubbed_while_pages_are_loaded(store):
    fill(space_of(store), A)
    store.flush().result(30)
    before = store.stats().disk.counters.scrubbed_pages
    store._disk._reading[object()] = 1  # a load that takes long
    begin(store)
    idle(store, 3)
    assert store.stats().disk.counters.scrubbed_pages == before
    store._disk._reading.clear()


def test_scrubbing_makes_no_page_younger(store):
    fill(space_of(store), A)
    store.flush().result(30)
    used = [page.last_used for page in store._disk._pages._index.by_hash.values()]
    begin(store)
    idle(store, 4)
    assert store.stats().disk.counters.scrubbed_pages == 10
    assert used == [page.last_used for page in store._disk._pages._index.by_hash.values()]


def test_a_slot_that_was_reused_meanwhile_is_not_bad(store):
    fill(space_of(store), A)
    store.flush().result(30)
    pages, at = store._disk._pages.owned_from(0, 4)
    space_of(store).drop()
    misread = Completion()
    misread.set_result(np.full(4, CHECKSUM, np.int32))
    store._disk._scrub._account(pages, at, misread)
    assert store.stats().disk.counters.checksum_misses == 0
