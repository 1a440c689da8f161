# SPDX-License-Identifier: Apache-2.0
"""Pages on disk older than max_age_s are not found; restarts and loads make none younger."""

import pytest

from .known_pages import crowd_out, fill, loaded, space_of
from .sim_store import look

S = 10**9


@pytest.fixture
def now(monkeypatch):
    """The time in seconds, in a list."""
    time = [10**9]
    for module in ("ages", "ram_tier"):
        monkeypatch.setattr(f"kt_kvcache.{module}.now_ns", lambda: time[0] * S)
    return time


def test_old_pages_are_not_found_and_their_slots_are_free(open_store, now):
    store = open_store(max_age_s=10)
    space = space_of(store)
    chain = fill(space, [1] * 32)
    assert store.flush().result(30)
    now[0] += 9
    crowd_out(store)
    assert loaded(space, chain) == 32
    now[0] += 1
    assert space.probe(chain).num_pages == 0  # the copy in memory is as old
    look(store)
    disk = store.stats().disk
    assert disk.counters.expired_pages == 8
    assert disk.num_pages == 32  # the crowd is younger
    store.check_integrity()
    store.close()
    assert open_store().stats().disk.num_pages == 32  # their records are free, too


def test_slots_come_free_where_nobody_asks(open_store, now):
    store = open_store(max_age_s=10)
    fill(space_of(store), [1] * 32)
    assert store.flush().result(30)
    now[0] += 10
    look(store)
    assert store.stats().disk.num_pages == 0


def test_a_restart_makes_no_page_younger(open_store, now):
    with open_store() as store:
        fill(space_of(store), [1] * 32)
        assert store.flush().result(30)
        now[0] += 6
        fill(space_of(store), [2] * 32)
    store = open_store(max_age_s=10)
    space = space_of(store)
    now[0] += 3
    assert [space.probe(space.chain([i] * 32)).num_pages for i in (1, 2)] == [8, 8]
    now[0] += 1
    assert [space.probe(space.chain([i] * 32)).num_pages for i in (1, 2)] == [0, 8]
    now[0] += 6
    with space.acquire(space.chain([2] * 32)) as lease:
        assert lease.num_loadable_tokens == 0
    store.check_integrity()
