# SPDX-License-Identifier: Apache-2.0
"""What happens while a step computes: the one before it is booked, the one after it scheduled. And
it changes nothing that anybody is told."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from kt_runtime.core import Request
from kt_runtime.exec.aside import Aside
from kt_runtime.exec.batch import build_batch
from kt_runtime.exec.logprobs import token_logprobs

from .fake_model import (
    VOCAB_SIZE,
    FakeCausalLM,
    drain,
    fake_engine,
    greedy_continuation,
    greedy_request,
    history_logits,
    last_of,
    tokens_of,
)

MEETING_S = 10.0


@pytest.fixture
def aside():
    aside = Aside("test-aside")
    yield aside
    aside.close()


def drain_overlapped(engine, aside, between=lambda: None) -> list:
    """All events until no request is left; `between` is called after each step."""
    events = []
    for _ in range(1000):
        if not engine.has_work:
            return events
        engine.step_overlapped(aside, events.extend)
        between()
    raise AssertionError("requests still in flight after 1000 steps")


class MeetingModel(FakeCausalLM):
    """From the second batch on, waits for somebody else to come while it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.meeting = threading.Barrier(2)

    def forward(self, ops, batch, kv):
        if self.batches:
            self.meeting.wait(MEETING_S)
        return super().forward(ops, batch, kv)


def test_a_step_is_booked_while_the_next_one_computes(aside):
    """Either waits for the other: neither would end if they did not run at the same time."""
    model = MeetingModel()
    engine = fake_engine(model, cpu_graph=False)
    engine.add(greedy_request("a", [1, 2, 3, 4], 6, sampling={"logprobs": 2}))
    told = []

    def deliver(events) -> None:
        if events and events[-1].finish_reason is None:
            assert threading.current_thread().name == "test-aside"
            model.meeting.wait(MEETING_S)
        told.extend(events)

    while engine.has_work:
        engine.step_overlapped(aside, deliver)
    assert tokens_of(told, "a") == greedy_continuation([1, 2, 3, 4], 6)
    assert engine.stats().steps == 6


def test_the_next_decodes_are_scheduled_and_built_while_one_computes(aside, monkeypatch):
    built = []

    def recorded(*args, **kwargs):
        built.append(threading.current_thread().name)
        return build_batch(*args, **kwargs)

    monkeypatch.setattr("kt_runtime.engine.build_batch", recorded)
    engine = fake_engine()
    for i in range(3):
        engine.add(greedy_request(f"{i}", [i + 1] * 5, 20))
    events = drain_overlapped(engine, aside)
    # The prompts, their first decode, which follows prompts, and 18 that follow decodes.
    here = threading.current_thread().name
    assert built == [here, here] + ["test-aside"] * 18
    assert engine.stats().steps == 20
    for i in range(3):
        assert tokens_of(events, f"{i}") == greedy_continuation([i + 1] * 5, 20)


def test_who_arrives_while_a_step_computes_joins_the_next_one(aside):
    model = FakeCausalLM()
    engine = fake_engine(model, cpu_graph=False)
    engine.add(greedy_request("first", [1], 30))
    events = []
    for _ in range(4):
        engine.step_overlapped(aside, events.extend)
    engine.add(greedy_request("second", [2, 3], 4))
    engine.step_overlapped(aside, events.extend)
    assert model.batches[-1].seq_lens.tolist() == [5, 2]
    events += drain_overlapped(engine, aside)
    assert tokens_of(events, "first") == greedy_continuation([1], 30)
    assert tokens_of(events, "second") == greedy_continuation([2, 3], 4)


def test_no_row_is_computed_for_who_has_ended(aside):
    said = greedy_continuation([3, 4], 10)
    stop = said[4]
    model = FakeCausalLM()
    engine = fake_engine(model, cpu_graph=False)
    engine.add(greedy_request("stops", [3, 4], 10, sampling={"stop_token_ids": (stop,)}))
    engine.add(greedy_request("goes on", [5], 10))
    events = drain_overlapped(engine, aside)
    length = said.index(stop) + 1
    assert tokens_of(events, "stops") == said[:length]
    assert last_of(events, "stops").finish_reason == "stop"
    assert tokens_of(events, "goes on") == greedy_continuation([5], 10)
    assert [len(batch.seq_lens) for batch in model.batches] == [2] * length + [1] * (10 - length)


def test_an_abort_takes_the_next_step_at_most(aside):
    engine = fake_engine(enable_prefix_cache=False)
    engine.add(greedy_request("runs", [1] * 10, 100))
    engine.add(greedy_request("stays", [4], 12))
    events = []
    for _ in range(3):
        engine.step_overlapped(aside, events.extend)
    engine.abort("runs")
    engine.step_overlapped(aside, events.extend)
    last = last_of(events, "runs")
    assert (last.token_id, last.finish_reason, last.num_generated_tokens) == (None, "abort", 3)
    assert tokens_of(events, "runs") == greedy_continuation([1] * 10, 3)
    assert [s.request.request_id for s in engine._scheduler.running] == ["stays"]
    events += drain_overlapped(engine, aside)
    assert tokens_of(events, "stays") == greedy_continuation([4], 12)
    assert engine.stats().pages_free == 64


def requests() -> list[Request]:
    settings = [
        {"temperature": 0.8, "top_p": 0.9, "logprobs": 5, "prompt_logprobs": 1},
        {"temperature": 1.3, "top_k": 20, "repetition_penalty": 1.3},
        {"logprobs": 0, "max_tokens": 1},
        {"prompt_logprobs": 2, "max_tokens": 0},
        {"temperature": 2.0, "logit_bias": {4: 5.0}, "ignore_eos": False},
    ]
    made = [
        greedy_request(f"{i}", [(7 * i + k) % VOCAB_SIZE for k in range(5 + i)], 25, sampling=s)
        for i, s in enumerate({"seed": i} | s for i, s in enumerate(settings))
    ]
    return [*made, Request("logits", tuple(range(9)), return_logits=True, chunk_size=2)]


@pytest.mark.parametrize(
    "settings", [{}, {"num_pages": 10, "max_num_seqs": 3, "max_batch_tokens": 7}]
)
def test_nothing_that_is_told_depends_on_it(aside, settings):
    told = []
    for overlapped in (False, True):
        engine = fake_engine(**settings)
        for request in requests():
            engine.add(request)
        events = drain_overlapped(engine, aside) if overlapped else drain(engine)
        told.append({r.request_id: [] for r in requests()})
        for event in events:
            told[-1][event.request_id].append(event)
        assert engine.take_logits("logits").shape == (9, VOCAB_SIZE)
        assert engine.stats().pages_used == 0
    assert told[0] == told[1]


def test_log_probabilities_are_found_when_their_row_is_long_gone(aside, monkeypatch):
    """A graph writes the next logits where the last ones were."""
    engine = fake_engine()
    done, waits = [], itertools.count(2)
    run = engine._parts.runner.run

    def counted(batch):
        logits = run(batch)
        done.append(batch)
        return logits

    def late(*args):
        wanted, until = min(next(waits), 6), time.monotonic() + MEETING_S
        while len(done) < wanted and time.monotonic() < until:
            time.sleep(0.0005)
        assert len(done) >= wanted
        return token_logprobs(*args)

    monkeypatch.setattr(engine._parts.runner, "run", counted)
    monkeypatch.setattr("kt_runtime.exec.outputs.token_logprobs", late)
    engine.add(greedy_request("a", [1], 6, sampling={"logprobs": 2}))
    events = drain_overlapped(engine, aside)
    assert engine.stats().graph_steps == 6
    history = [1]
    for event in events:
        assert event.logprobs == token_logprobs(history_logits(history), event.token_id, 2)
        history.append(event.token_id)


def test_a_forward_that_fails_ends_its_requests_only(aside):
    model = FakeCausalLM()
    engine = fake_engine(model)
    engine.add(greedy_request("good", [5], 3))
    events = drain_overlapped(engine, aside)
    engine.add(greedy_request("bad", [60, 1], 9))
    engine.step_overlapped(aside, events.extend)
    model.fail_at = greedy_continuation([60, 1], 1)[0]
    events += drain_overlapped(engine, aside)
    assert tokens_of(events, "bad") == [model.fail_at]
    assert last_of(events, "bad").error == "ValueError: [fake] this token breaks the model"
    model.fail_at = None
    engine.add(greedy_request("good too", [5], 5))
    assert tokens_of(drain_overlapped(engine, aside), "good too") == greedy_continuation([5], 5)
    assert engine.stats().pages_used == 0


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_batch_that_cannot_be_built_ends_its_requests_only(aside, monkeypatch, ahead):
    """Built beside the step before it, it was a guess, which nobody needs."""
    engine = fake_engine()
    engine.add(greedy_request("a", [1], 12))
    events = []
    engine.step_overlapped(aside, events.extend)
    failed = []
    with monkeypatch.context() as patch:

        def fails(shares, page_size, **guess):
            if bool(guess) == bool(ahead):
                failed.append(len(shares))
                raise MemoryError("none left")
            return build_batch(shares, page_size, **guess)

        patch.setattr("kt_runtime.engine.build_batch", fails)
        engine.add(greedy_request("b", [2], 12))
        for _ in range(3):
            engine.step_overlapped(aside, events.extend)
    engine.add(greedy_request("later", [3], 4))
    events += drain_overlapped(engine, aside)
    assert failed[0] == 2
    for i, name in enumerate("ab", start=1):
        last = last_of(events, name)
        assert (last.finish_reason, last.error) == (
            ("length", None) if ahead else ("error", "MemoryError: none left")
        )
        said = tokens_of(events, name)
        assert said == greedy_continuation([i], len(said))
    assert tokens_of(events, "later") == greedy_continuation([3], 4)
    assert engine.stats().pages_used == 0


@pytest.mark.parametrize(
    "where",
    ["kt_runtime.exec.outputs.token_logprobs", "kt_runtime.cache.page_pool.SequencePages.commit"],
)
def test_what_fails_while_it_is_booked_ends_its_request_once(aside, monkeypatch, where):
    """The request is being computed then; what comes of that is not told to anybody."""
    engine = fake_engine()
    sampling = {"logprobs": 1, "max_tokens": 30}
    for i in range(3):
        engine.add(greedy_request(f"{i}", [i + 1] * 5, sampling=sampling))
    events = []
    for _ in range(4):
        engine.step_overlapped(aside, events.extend)
    with monkeypatch.context() as patch:

        def fails(*args):
            raise MemoryError("none left")

        patch.setattr(where, fails)
        engine.abort("0")
        engine.step_overlapped(aside, events.extend)
    engine.add(greedy_request("later", [9], 3))
    events += drain_overlapped(engine, aside)
    ends = {e.request_id: e.finish_reason for e in events if e.finish_reason}
    assert sum(e.finish_reason is not None for e in events) == 4
    assert all(last_of(events, request_id).finish_reason for request_id in ends)
    assert (ends["1"], ends["2"]) == ("error", "error")
    assert last_of(events, "1").error == "MemoryError: none left"
    for i in range(3):
        said = tokens_of(events, f"{i}")
        assert said == greedy_continuation([i + 1] * 5, len(said))
    assert len(tokens_of(events, "1")) == 3
    assert engine.stats().pages_used == 0


def test_an_error_of_who_hears_the_news_is_raised(aside):
    engine = fake_engine()
    engine.add(greedy_request("a", [1], 9))

    def deliver(events) -> None:
        if events:
            raise SystemExit("gone")

    engine.step_overlapped(aside, deliver)
    with pytest.raises(SystemExit, match="gone"):
        engine.step_overlapped(aside, deliver)
    engine.close()
