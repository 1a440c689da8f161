# SPDX-License-Identifier: Apache-2.0
"""Requests whose prefix lies in slow storage: what they wait for, what others do meanwhile, and
what they go on from."""

from __future__ import annotations

import threading
import time

import pytest

from kt_runtime.engine import Engine

from .fake_model import (
    FakeCausalLM,
    drain,
    fake_engine,
    greedy_continuation,
    greedy_request,
    last_of,
    tokens_of,
)
from .slow_storage import SlowStorage

PROMPT = tuple(range(20, 43))  # five full pages of 4, and three tokens


@pytest.fixture
def storage() -> SlowStorage:
    """Holds the full pages of PROMPT."""
    storage = SlowStorage()
    with fake_engine(storage=storage) as engine:
        engine.add(greedy_request("before", PROMPT, 1))
        drain(engine)
    assert len(storage.pages) == 5
    return storage


def said(engine: Engine, *request_ids: str) -> dict[str, list[int]]:
    events = drain(engine)
    return {i: tokens_of(events, i) for i in request_ids}


def test_a_stored_prefix_is_loaded_and_not_computed(storage: SlowStorage) -> None:
    model = FakeCausalLM()
    engine = fake_engine(model, storage=storage)
    engine.add(greedy_request("a", PROMPT, 4))
    assert engine.step() == []
    (load,) = storage.loads
    assert engine.stats().num_running == 1
    assert model.batches == []
    load.end(5)
    events = drain(engine)
    assert tokens_of(events, "a") == greedy_continuation(PROMPT, 4)
    assert last_of(events, "a").num_cached_tokens == 20
    assert len(model.batches[0].input_ids) == 3
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.cached_tokens) == (23, 20)


@pytest.mark.parametrize("num_right", range(5))
def test_only_what_proved_right_is_used(storage: SlowStorage, num_right: int) -> None:
    """All other pages are NaN, which the model would notice."""
    engine = fake_engine(storage=storage)
    engine.add(greedy_request("a", PROMPT, 4))
    engine.step()
    storage.loads[0].end(num_right)
    events = drain(engine)
    assert tokens_of(events, "a") == greedy_continuation(PROMPT, 4)
    assert last_of(events, "a").num_cached_tokens == 4 * num_right
    assert engine.stats().pages_used == 0


def test_others_compute_while_one_loads_and_it_takes_its_place_afterwards(storage) -> None:
    model = FakeCausalLM()
    engine = fake_engine(model, storage=storage, max_batch_tokens=11)
    engine.add(greedy_request("first", PROMPT, 8))
    engine.add(greedy_request("second", range(50, 80), 4))
    events = engine.step() + engine.step()
    assert [len(batch.input_ids) for batch in model.batches] == [11, 11]
    storage.loads[0].end(5)
    events += engine.step()
    assert model.batches[-1].input_ids[:3].tolist() == list(PROMPT[20:])
    assert len(model.batches[-1].input_ids) == 11
    events += drain(engine)
    assert tokens_of(events, "first") == greedy_continuation(PROMPT, 8)
    assert tokens_of(events, "second") == greedy_continuation(range(50, 80), 4)


def test_memory_storage_and_part_of_a_page_add_up(storage: SlowStorage) -> None:
    engine = fake_engine(storage=storage)
    space = engine._parts.pool._space_of(None).space
    engine.add(greedy_request("a", (*PROMPT[:10], 1, 1), 1))
    engine.step()
    storage.loads[0].end(2)
    drain(engine)
    assert space.probe(space.chain(PROMPT)).num_tokens == 8
    # Two pages are in memory, two more in storage, and the last one is another's, who has two
    # tokens in common.
    engine.add(greedy_request("b", (*PROMPT[:18], 1, 1, 1), 1))
    engine.step()
    storage.loads[0].end(2)
    drain(engine)
    engine.add(greedy_request("c", (*PROMPT[:18], 1, 2, 3), 1))
    events = drain(engine)
    assert last_of(events, "c").num_cached_tokens == 19
    assert tokens_of(events, "c") == greedy_continuation((*PROMPT[:18], 1, 2, 3), 1)


def test_a_request_aborted_while_it_loads_leaves_at_once(storage: SlowStorage) -> None:
    engine = fake_engine(storage=storage)
    engine.add(greedy_request("a", PROMPT, 4))
    engine.step()
    assert engine.stats().pages_used == 6
    engine.abort("a")
    (event,) = engine.step()
    assert (event.finish_reason, event.num_cached_tokens) == ("abort", 0)
    assert not engine.has_work
    # What the load may still write to is nobody's until it has ended.
    assert engine.stats().pages_used == 5
    storage.loads[0].end(5)
    assert engine.stats().pages_free == 64
    assert said(engine) == {}


def test_pages_of_a_detached_load_come_to_whoever_waits_for_them(storage: SlowStorage) -> None:
    engine = fake_engine(storage=storage, num_pages=8)
    engine.add(greedy_request("a", PROMPT, 4))
    engine.step()
    engine.abort("a")
    engine.step()
    other = tuple(range(60, 75))
    engine.add(greedy_request("b", other, 4))
    assert engine.step() == []
    assert len(engine._scheduler.waiting) == 1
    storage.loads[0].end(5)
    assert said(engine, "b") == {"b": greedy_continuation(other, 4)}


def test_a_request_that_loads_gives_way_to_one_served_before_it(storage: SlowStorage) -> None:
    engine = fake_engine(storage=storage, num_pages=8)
    engine.add(greedy_request("old", [1, 2, 3], 16))
    engine.step()
    engine.add(greedy_request("new", PROMPT, 4))
    engine.step()
    assert len(storage.loads) == 1
    events = []
    while not storage.loads[0].detached:  # until the old one needs a third page
        events += engine.step()
    storage.loads[0].end(5)
    for _ in range(200):
        events += engine.step()
        for load in list(storage.loads):
            load.end(5)
        if not engine.has_work:
            break
    assert tokens_of(events, "new") == greedy_continuation(PROMPT, 4)
    last = last_of(events, "new")
    assert last.num_cached_tokens == 20
    assert engine.stats().prompt_tokens == 26


def test_an_engine_that_only_waits_for_a_load_sleeps_until_it_ends(storage, monkeypatch) -> None:
    monkeypatch.setattr("kt_runtime.engine._IDLE_S", 60.0)
    engine = fake_engine(storage=storage)
    engine.add(greedy_request("a", PROMPT, 4))
    engine.wait_for_work()
    engine.step()
    waited = threading.Event()

    def wait() -> None:
        engine.wait_for_work()
        waited.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not waited.wait(0.05)
    storage.loads[0].end(5)
    assert waited.wait(30)
    thread.join()
    drain(engine)


def test_pages_that_come_back_unannounced_are_found(storage: SlowStorage) -> None:
    """As those do that the store was writing to a disk."""
    engine = fake_engine(storage=storage, num_pages=6)
    space = engine._parts.pool._space_of(None).space
    writer = space.reserve(space.chain(()), 0, 4)
    engine.add(greedy_request("a", [1] * 15, 4))
    assert engine.step() == []
    began = time.monotonic()
    engine.wait_for_work()
    assert time.monotonic() - began >= 0.009
    assert engine.step() == []
    writer.release()
    assert said(engine, "a") == {"a": greedy_continuation([1] * 15, 4)}


async def test_a_load_wakes_the_engines_thread(storage: SlowStorage) -> None:
    engine = fake_engine(storage=storage)
    threading.Timer(0.05, lambda: storage.loads[0].end(5)).start()
    events = engine.generate(greedy_request("a", PROMPT, 4))
    assert [event.token_id async for event in events] == greedy_continuation(PROMPT, 4)
    engine.close()
