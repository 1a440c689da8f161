# SPDX-License-Identifier: Apache-2.0
"""What limits reading and writing: rates, and bytes per day."""

import threading
import time

import pytest

from kt_kvcache.disk.rate import Delayed, TokenBucket
from kt_kvcache.disk.root import Root
from kt_kvcache.disk.wear import Wear

from .known_pages import SLOT_BYTES, fill, loaded, space_of
from .sim_files import SimDisk, SimFiles

HOUR = 3600


def test_a_bucket_spaces_bytes_and_forgives_no_more_than_a_burst():
    now = [100.0]
    bucket = TokenBucket(1000, lambda: now[0])
    assert bucket.take(100) == 0  # a tenth of a second's worth was there
    assert bucket.take(500) == 0
    assert bucket.take(500) == pytest.approx(0.5)
    assert bucket.take(1) == pytest.approx(1.0)
    now[0] += 60
    assert bucket.take(300) == 0
    assert bucket.take(1) == pytest.approx(0.2)
    assert TokenBucket(0).take(1 << 60) == 0


def test_delayed_calls_keep_their_order_and_closing_makes_them_all():
    delayed, made = Delayed(TokenBucket(1000)), []
    start = time.monotonic()
    delayed.call(200, lambda: made.append((0, threading.current_thread())))
    assert made == [(0, threading.current_thread())]
    for i in (1, 2):
        delayed.call(100, lambda i=i: made.append((i, time.monotonic() - start)))
    delayed.call(10**6, lambda: made.append((3, 0)))
    delayed.call(1, lambda: made.append((4, 0)))
    while len(made) < 3:
        assert time.monotonic() - start < 30
        time.sleep(0.001)
    assert 0.05 < made[1][1] < made[2][1]
    delayed.close()
    assert [i for i, _ in made] == [0, 1, 2, 3, 4]
    delayed.call(10**6, lambda: made.append((5, 0)))
    assert len(made) == 6


def test_loads_keep_to_their_rate_and_block_nobody(open_store):
    with open_store() as store:
        fill(space_of(store), [1] * 128)
    store = open_store(read_bytes_per_s=32 * SLOT_BYTES)
    space = space_of(store)
    assert loaded(space, space.chain([1] * 96)) == 96  # the first goes at once
    start = time.monotonic()
    with space.acquire(space.chain([1] * 128)) as lease:
        load = lease.load()
        assert time.monotonic() - start < 0.3
        assert load.result(30).ok_tokens == 32
    assert time.monotonic() - start > 0.3
    assert store.stats().disk.counters.loaded_pages == 32


def test_closing_does_not_wait_for_a_rate(open_store):
    store = open_store(read_bytes_per_s=1, write_bytes_per_s=1)
    space = space_of(store)
    fill(space, [1] * 64)
    start = time.monotonic()
    assert store.flush().result(30)  # nor does what somebody waits for
    fill(space, [2] * 64)
    store.close()
    assert time.monotonic() - start < 20
    assert space_of(open_store()).probe(space.chain([2] * 64)).num_pages == 16


def test_writes_keep_to_their_rate(open_store):
    store = open_store(write_bytes_per_s=16 * SLOT_BYTES)
    fill(space_of(store), [1] * 64)
    start = time.monotonic()
    while store.stats().disk.counters.written_pages < 12:
        assert time.monotonic() - start < 30
        time.sleep(0.01)
    assert time.monotonic() - start > 0.4
    assert store.stats().disk.counters.dropped_writes == 0


def test_what_waits_for_a_rate_holds_no_memory(open_store):
    store = open_store(write_bytes_per_s=2 * SLOT_BYTES)
    space = space_of(store)
    fill(space, [1] * 128)  # all of memory; some of it in flight for ever
    while not store.stats().disk.counters.written_pages:
        time.sleep(0.01)
    with space.reserve(space.chain([]), 0, 24):
        assert store.stats().reserved_pages == 24
    assert store.stats().disk.counters.written_pages < 8
    assert not store.flush().result(30)
    counters = store.stats().disk.counters
    assert counters.written_pages + counters.dropped_writes == 32
    assert counters.dropped_writes >= 20


@pytest.fixture
def simulated_root():
    return Root(SimFiles(SimDisk()), 1 << 20, 0)


def test_a_day_is_24_hours_wherever_it_begins(simulated_root):
    now = [1000.0 * HOUR]
    wear = Wear(simulated_root, 1000, lambda: now[0])
    wear.add(600)
    now[0] += HOUR
    wear.add(300)
    assert wear.last_day() == 900
    assert wear.allows(100)
    assert not wear.allows(101)
    now[0] += 23.99 * HOUR
    assert wear.last_day() == 900
    now[0] += 0.01 * HOUR
    assert wear.last_day() == 300
    assert Wear(simulated_root, 0).allows(1 << 60)


def test_what_was_written_outlives_processes_and_adds_up(simulated_root):
    now = [1000.0 * HOUR]
    one, two = (Wear(simulated_root, 1000, lambda: now[0]) for _ in range(2))
    one.add(600)
    two.add(300)
    one.save()
    two.save()
    two.save()
    assert (one.last_day(), two.last_day()) == (600, 900)
    one.save()
    assert one.last_day() == 900
    assert Wear(simulated_root, 1000, lambda: now[0]).last_day() == 900
    now[0] += 30 * HOUR
    two.add(50)
    two.save()
    assert Wear(simulated_root, 1000, lambda: now[0]).last_day() == 50


def test_a_damaged_record_of_what_was_written_says_nothing(simulated_root):
    wear = Wear(simulated_root, 1000)
    wear.add(600)
    wear.save()
    simulated_root.files.disk.names["WRITTEN"].content[3] ^= 1
    assert Wear(simulated_root, 1000).last_day() == 0


def test_beyond_the_days_bytes_pages_are_dropped_and_counted(open_store):
    with open_store(daily_write_bytes=10 * (SLOT_BYTES + 1024)) as store:
        space = space_of(store)
        fill(space, [1] * 32)
        assert store.flush().result(30)
        fill(space, [2] * 32)
        assert not store.flush().result(30)
        counters = store.stats().disk.counters
        assert (counters.written_pages, counters.dropped_writes) == (10, 6)
        assert counters.capped_writes == 6
        written = store.stats().disk.written_last_day_bytes
        assert 10 * SLOT_BYTES < written < 11 * SLOT_BYTES
    store = open_store(daily_write_bytes=10 * (SLOT_BYTES + 1024))
    assert store.stats().disk.written_last_day_bytes == written
    fill(space_of(store), [3] * 32)
    assert not store.flush().result(30)
