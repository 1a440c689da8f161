# SPDX-License-Identifier: Apache-2.0
"""What the scheduler's choices mean for requests: preemption, priority, time, faults, queues."""

from __future__ import annotations

import itertools
import pkgutil

import numpy as np
import pytest
import torch

from kt_runtime.core import InvalidFieldError, QueueFullError, Request
from kt_runtime.scheduler import StepTimeModel, StepWork

from .fake_model import (
    VOCAB_SIZE,
    FakeCausalLM,
    drain,
    fake_engine,
    greedy_continuation,
    greedy_request,
    history_rows,
    last_of,
    tokens_of,
)

SAMPLED = {"temperature": 2.0, "seed": 5, "top_p": 0.9}


def test_a_preempted_request_says_the_same_once():
    prompts = {"old": [1] * 9, "new": [2] * 7, "logits": list(range(11))}
    engine = fake_engine(num_pages=6, max_num_seqs=3)
    engine.add(greedy_request("old", prompts["old"], 12, sampling=SAMPLED))
    engine.add(greedy_request("new", prompts["new"], 12, sampling=SAMPLED))
    events = drain(engine)
    stats = engine.stats()
    assert stats.preemptions >= 1
    assert stats.prefill_tokens > 9 + 7
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (16, 0, 24)
    for request_id in ("old", "new"):
        alone = fake_engine()
        alone.add(greedy_request(request_id, prompts[request_id], 12, sampling=SAMPLED))
        assert tokens_of(events, request_id) == tokens_of(drain(alone), request_id)
        numbers = [e.num_generated_tokens for e in events if e.request_id == request_id]
        assert numbers == list(range(1, 13))
        # What it found again of its own is no saving.
        assert {e.num_cached_tokens for e in events if e.request_id == request_id} == {0}
    # The oldest never stops.
    assert [e.request_id for e in events].index("old") == 0
    assert last_of(events, "old") in events[: events.index(last_of(events, "new"))]
    assert (stats.pages_used, stats.finished) == (0, {"length": 2})


def test_a_preempted_logits_request_computes_every_row():
    engine = fake_engine(num_pages=6, max_batch_tokens=11)
    engine.add(greedy_request("old", [1], 14))
    engine.step()
    ids = list(range(14))
    engine.add(Request("logits", tuple(ids), return_logits=True, chunk_size=1))
    events = drain(engine)
    assert engine.stats().preemptions == 1
    assert last_of(events, "logits").finish_reason == "length"
    np.testing.assert_array_equal(engine.take_logits("logits"), history_rows(ids))


def test_a_preempted_request_reports_its_prompt_and_penalties_once():
    sampling = {"prompt_logprobs": 1, "logprobs": 2, "frequency_penalty": 1.5, "temperature": 1.0}
    requests = [
        greedy_request(f"{i}", [i] * 9, 12, sampling=sampling | {"seed": i}) for i in range(2)
    ]
    engine, roomy = fake_engine(num_pages=7, max_num_seqs=2), fake_engine()
    for request in requests:
        engine.add(request)
        roomy.add(request)
    events, expected = drain(engine), drain(roomy)
    assert engine.stats().preemptions > roomy.stats().preemptions == 0
    for request in requests:
        news = [
            [(e.token_id, e.logprobs, e.prompt_logprobs) for e in each if e.request_id == who]
            for each in (events, expected)
            for who in [request.request_id]
        ]
        assert news[0] == news[1]


def test_a_preempted_request_can_be_aborted():
    engine = fake_engine(num_pages=6)
    for request_id in ("old", "new"):
        engine.add(greedy_request(request_id, [3] * 9, 12))
    events = []
    while engine.stats().preemptions == 0:
        events += engine.step()
    engine.abort("new")
    events += drain(engine)
    assert last_of(events, "new").finish_reason == "abort"
    assert last_of(events, "new").num_generated_tokens == len(tokens_of(events, "new")) > 0
    assert tokens_of(events, "old") == greedy_continuation([3] * 9, 12)


def test_out_of_memory_while_admitting_fails_that_request_only(monkeypatch):
    engine = fake_engine()
    engine.add(greedy_request("runs", [4], 5))
    events = engine.step()
    with monkeypatch.context() as patch:
        patch.setattr("kt_kvcache.Space.reserve", lambda *_: (_ for _ in ()).throw(MemoryError()))
        engine.add(greedy_request("unlucky", [5] * 9, 5))
        events += engine.step()
    engine.add(greedy_request("lucky", [5] * 9, 5))
    events += drain(engine)
    unlucky = last_of(events, "unlucky")
    assert (unlucky.finish_reason, unlucky.error) == ("error", "MemoryError: ")
    assert tokens_of(events, "runs") == greedy_continuation([4], 5)
    assert tokens_of(events, "lucky") == greedy_continuation([5] * 9, 5)
    assert engine.stats().pages_used == 0


@pytest.mark.parametrize(
    "where",
    ["kt_runtime.exec.sampler.sample", "kt_runtime.cache.page_pool.SequencePages.commit"],
)
def test_what_fails_after_the_forward_fails_one_request(monkeypatch, where):
    engine = fake_engine()
    original = pkgutil.resolve_name(where)
    calls = itertools.count()

    def third_call_fails(*args, **kwargs):
        if next(calls) == 2:
            raise MemoryError("none left")
        return original(*args, **kwargs)

    monkeypatch.setattr(where, third_call_fails)
    for i in range(3):
        engine.add(greedy_request(f"{i}", [i + 1] * 5, 6))
    events = drain(engine)
    assert last_of(events, "2").error == "MemoryError: none left"
    for i in range(2):
        assert tokens_of(events, f"{i}") == greedy_continuation([i + 1] * 5, 6)
    assert (engine.stats().finished, engine.stats().pages_used) == ({"error": 1, "length": 2}, 0)


def test_prompt_tokens_that_wait_are_limited_but_one_prompt_may_always_wait():
    engine = fake_engine(max_waiting_tokens=10, max_num_seqs=1)
    engine.add(greedy_request("long", [1] * 30))
    with pytest.raises(QueueFullError, match="at most 10 prompt tokens may wait") as e:
        engine.add(greedy_request("b", [1]))
    assert e.value.limit == 10
    engine.step()
    engine.add(greedy_request("b", [1] * 9))
    engine.step()
    engine.add(greedy_request("c", [1]))
    with pytest.raises(QueueFullError):
        engine.add(greedy_request("d", [1]))
    drain(engine)


def test_priority_is_refused_unless_the_policy_knows_it():
    with pytest.raises(InvalidFieldError, match="priority must be 0 unless schedule_policy is 'p"):
        fake_engine().add(greedy_request("a", [1], priority=1))
    engine = fake_engine(schedule_policy="priority", max_num_seqs=1)
    with pytest.raises(ValueError, match=r"priority must be a whole number; got 1\.5"):
        engine.add(greedy_request("a", [1], priority=1.5))
    for request_id, priority in (("a", 2), ("b", 0), ("c", -3), ("d", 2)):
        engine.add(greedy_request(request_id, [1], 3, priority=priority))
    ended = [e.request_id for e in drain(engine) if e.finish_reason]
    assert ended == ["c", "b", "a", "d"]


class SilentModel(FakeCausalLM):
    """Says 0, always and fast."""

    def forward(self, ops, batch, kv):
        return torch.zeros(len(batch.logits_rows), VOCAB_SIZE)


def test_ten_thousand_requests_aborted_at_any_time_leak_no_page():
    engine = fake_engine(SilentModel(), cpu_graph=False, max_waiting=20_000, num_pages=12)
    for i in range(10_000):
        # Prompts that share pages, some of which are stored and some computed by both.
        engine.add(greedy_request(f"{i}", [i % 3] * (i % 13 + 1), 20))
        if i % 5 == 0:
            engine.step()
        # Some before their first step, some while they run or wait, some after their end.
        engine.abort(f"{i - i % 40}")
        if i % 10:
            engine.abort(f"{i - 21}")
    drain(engine)
    stats = engine.stats()
    assert sum(stats.finished.values()) == 10_000
    assert stats.finished["abort"] > stats.finished["length"] > 100
    assert stats.preemptions > 100
    assert (stats.pages_used, stats.pages_free + stats.pages_cached) == (0, 12)
    engine.add(greedy_request("all", [1] * 40, 8))
    assert len(tokens_of(drain(engine), "all")) == 8


def probed_times(row_s: float) -> StepTimeModel:
    """As if probed on a machine on which a step takes that long for each row."""
    works = [StepWork(1, 0, 1), *(StepWork().with_chunk(*c) for c in ((0, 4), (0, 64), (100, 64)))]
    return StepTimeModel(probed=[(work, row_s * work.num_rows) for work in works], page_size=4)


def chunks_beside_a_decode(max_itl_ms: float) -> dict[int, int]:
    """Chunks of a prompt of 200 where each row takes a millisecond."""
    model = FakeCausalLM()
    model.seconds = lambda batch, live: 0.001 * live
    settings = {"max_itl_ms": max_itl_ms, "max_batch_tokens": 256}
    engine = fake_engine(model, probed_times(0.001), **settings)
    engine.add(greedy_request("talks", [1], 100))
    engine.step()
    engine.add(greedy_request("long", [2] * 200, 1))
    while not engine.stats().finished:
        before = model.now
        events = engine.step()
        assert tokens_of(events, "talks")
        assert model.now - before <= max_itl_ms / 1000 + 1e-9
    return {size: n for size, n in engine.stats().prefill_chunks.items() if size > 1}


def test_four_times_the_latency_gives_chunks_four_times_as_large():
    assert chunks_beside_a_decode(17.5) == {16: 12, 8: 1}
    assert chunks_beside_a_decode(70) == {128: 2, 64: 1}


def test_the_engine_learns_how_long_steps_take():
    model = FakeCausalLM()
    model.seconds = lambda batch, live: 0.004 * live
    # The probe saw a machine four times as fast.
    engine = fake_engine(model, probed_times(0.001), max_itl_ms=50, num_pages=256)
    engine.add(greedy_request("talks", [1], 200))
    engine.step()
    engine.add(greedy_request("long", [2] * 250, 1))
    seconds = []
    while not engine.stats().finished:
        before = model.now
        engine.step()
        seconds.append(model.now - before)
    assert 0.05 * 0.8 < max(seconds[10:-1]) < 0.05 * 1.1


def test_an_engine_that_never_idles_finds_out_what_chunks_cost():
    """Nothing was probed but a lone decode, and something decodes from the first token on."""
    model = FakeCausalLM()
    model.seconds = lambda batch, live: 0.001 * live
    times = StepTimeModel(probed=[(StepWork(1, 0, 1), 0.001)], page_size=4)
    engine = fake_engine(model, times, max_itl_ms=70, max_batch_tokens=256)
    engine.add(greedy_request("talks", [1], 100))
    engine.step()
    engine.add(greedy_request("long", [2] * 200, 1))
    sizes = []
    while not engine.stats().finished:
        before = model.now
        engine.step()
        sizes.append(round((model.now - before) / 0.001) - 1)
    assert sizes[0] == 4
    assert all(size <= 4 * max(sizes[:i]) for i, size in enumerate(sizes) if i)
    assert 60 < max(sizes) <= 69
    assert len(sizes) == 5
