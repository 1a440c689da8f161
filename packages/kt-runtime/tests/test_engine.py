# SPDX-License-Identifier: Apache-2.0
"""The engine's synchronous core on a model whose logits are a hash of the history in its pages."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_runtime.core import (
    ContextLengthError,
    EngineClosedError,
    QueueFullError,
    Request,
    SamplingParams,
)
from kt_runtime.exec.sampler import sample

from .fake_model import (
    EOS,
    VOCAB_SIZE,
    FakeCausalLM,
    drain,
    fake_engine,
    greedy_continuation,
    greedy_request,
    history_logits,
    history_rows,
    last_of,
    tokens_of,
)


def logits_of(engine, ids, **settings) -> np.ndarray:
    engine.add(Request("logits", tuple(ids), return_logits=True, **settings))
    events = drain(engine)
    assert [(e.token_id, e.finish_reason) for e in events] == [(None, "length")]
    return engine.take_logits("logits")


def test_greedy_tokens_are_those_of_the_model():
    engine = fake_engine()
    engine.add(greedy_request("a", [1, 2, 3], max_tokens=20))
    events = drain(engine)
    assert tokens_of(events, "a") == greedy_continuation([1, 2, 3], 20)
    last = events[-1]
    assert (last.finish_reason, last.num_prompt_tokens, last.num_generated_tokens) == (
        "length",
        3,
        20,
    )
    assert [e.finish_reason for e in events[:-1]] == [None] * 19
    assert [e.num_generated_tokens for e in events] == list(range(1, 21))


def test_requests_in_flight_share_steps():
    engine = fake_engine()
    prompts = {f"r{i}": [i + 1] * (i + 2) for i in range(4)}
    for request_id, prompt in prompts.items():
        engine.add(greedy_request(request_id, prompt, max_tokens=16))
    events = drain(engine)
    for request_id, prompt in prompts.items():
        assert tokens_of(events, request_id) == greedy_continuation(prompt, 16)
    stats = engine.stats()
    assert stats.steps == 16
    assert stats.generated_tokens == 64
    assert stats.graph_steps == 15  # all but the prefill


def test_generation_ends_at_eos_unless_told_otherwise():
    start = next(i for i in range(VOCAB_SIZE) if EOS in greedy_continuation([i], 50)[5:])
    said = greedy_continuation([start], 50)
    length = said.index(EOS) + 1
    engine = fake_engine()
    engine.add(greedy_request("stops", [start], 50, sampling={"ignore_eos": False}))
    engine.add(greedy_request("goes on", [start], 50))
    events = drain(engine)
    assert tokens_of(events, "stops") == said[:length]
    assert last_of(events, "stops").finish_reason == "stop"
    assert tokens_of(events, "goes on") == said


def test_stop_token_ids_end_a_request_and_are_reported():
    said = greedy_continuation([3, 4], 10)
    engine = fake_engine()
    engine.add(greedy_request("a", [3, 4], 10, sampling={"stop_token_ids": (said[4],)}))
    events = drain(engine)
    assert tokens_of(events, "a") == said[: said.index(said[4]) + 1]
    assert events[-1].finish_reason == "stop"


def test_the_context_ends_a_request():
    engine = fake_engine(max_model_len=10)
    engine.add(greedy_request("a", [1, 2, 3], max_tokens=None))
    events = drain(engine)
    assert len(tokens_of(events, "a")) == 7
    assert events[-1].finish_reason == "length"


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("settings", [{}, {"kv_page_size": 1}, {"page_order_seed": 3}])
def test_logits_are_those_of_every_position(chunk_size, settings):
    ids = [(i * i + 5) % VOCAB_SIZE for i in range(45)]
    engine = fake_engine(**settings)
    logits = logits_of(engine, ids, chunk_size=chunk_size)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, history_rows(ids))
    steps = -(-len(ids) // min(chunk_size or 32, 32))
    assert engine.stats().steps == steps
    assert engine.stats().graph_steps == (steps if chunk_size == 1 else 0)


def test_logits_requests_neither_take_nor_leave_prefixes():
    engine = fake_engine()
    ids = list(range(20))
    logits_of(engine, ids)
    assert engine.stats().pages_cached == 0
    engine.add(greedy_request("a", ids, 4))
    drain(engine)
    engine.add(Request("b", tuple(ids), return_logits=True))
    assert drain(engine)[-1].num_cached_tokens == 0
    np.testing.assert_array_equal(engine.take_logits("b"), history_rows(ids))


def test_logits_are_taken_once():
    engine = fake_engine()
    logits_of(engine, [1, 2])
    for request_id in ("logits", "never asked"):
        with pytest.raises(ValueError, match=r"\[engine.take_logits\] request_id must name"):
            engine.take_logits(request_id)


def test_a_repeated_prompt_is_reused_and_says_the_same():
    engine = fake_engine()
    prompt = list(range(1, 19))
    for request_id in ("first", "second"):
        engine.add(greedy_request(request_id, prompt, 6))
        events = drain(engine)
        assert tokens_of(events, request_id) == greedy_continuation(prompt, 6)
        assert events[-1].num_cached_tokens == (0 if request_id == "first" else 17)
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.cached_tokens) == (36, 17)


def test_a_follow_up_turn_reuses_question_and_answer():
    engine = fake_engine()
    prompt = list(range(1, 7))
    engine.add(greedy_request("first", prompt, 7))
    said = tokens_of(drain(engine), "first")
    # KV of 6 + 7 - 1 tokens was written: three pages of four.
    follow_up = [*prompt, *said, 20, 21]
    engine.add(greedy_request("second", follow_up, 5))
    events = drain(engine)
    assert events[-1].num_cached_tokens == 12
    assert tokens_of(events, "second") == greedy_continuation(follow_up, 5)


def test_prefixes_are_shared_while_their_first_reader_still_runs():
    engine = fake_engine()
    prompt = list(range(1, 14))
    engine.add(greedy_request("first", prompt, 50))
    events = engine.step()
    engine.add(greedy_request("second", prompt, 3))
    events += drain(engine)
    assert last_of(events, "second").num_cached_tokens == 12
    assert tokens_of(events, "second") == greedy_continuation(prompt, 3)
    assert tokens_of(events, "first") == greedy_continuation(prompt, 50)


def test_tenants_do_not_see_each_others_prefixes():
    engine = fake_engine()
    for request_id, tenant, cached in (("1", "a", 0), ("2", "b", 0), ("3", "a", 16)):
        engine.add(greedy_request(request_id, list(range(18)), 2, tenant=tenant))
        assert drain(engine)[-1].num_cached_tokens == cached


def test_an_abort_ends_the_request_and_frees_its_pages_with_the_next_step():
    engine = fake_engine(enable_prefix_cache=False)
    engine.add(greedy_request("runs", [1] * 10, 100))
    engine.add(greedy_request("stays", [4], 5))
    engine.step()
    engine.step()
    before = engine.stats().pages_used
    engine.abort("runs")
    engine.abort("runs")
    engine.abort("never heard of")
    event = engine.step()[0]
    assert (event.request_id, event.token_id, event.finish_reason) == ("runs", None, "abort")
    assert event.num_generated_tokens == 2
    assert engine.stats().pages_used == before - 3  # 10 + 2 - 1 tokens
    events = drain(engine)
    assert {e.request_id for e in events} == {"stays"}
    assert engine.stats().pages_free == 64


def test_waiting_and_just_added_requests_can_be_aborted():
    engine = fake_engine(max_num_seqs=1)
    engine.add(greedy_request("runs", [1], 5))
    engine.add(greedy_request("waits", [1], 5))
    engine.step()
    engine.add(greedy_request("new", [1], 5))
    engine.abort("waits")
    engine.abort("new")
    events = drain(engine)
    assert {e.request_id: e.finish_reason for e in events if e.finish_reason} == {
        "waits": "abort",
        "new": "abort",
        "runs": "length",
    }


def test_an_id_can_be_used_again_once_its_request_ended():
    engine = fake_engine()
    for _ in range(2):
        engine.add(greedy_request("a", [1, 2], 2))
        assert len(drain(engine)) == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"prompt": []}, r"prompt_token_ids must hold at least one id"),
        ({"prompt": [1, VOCAB_SIZE]}, rf"must lie in \[0, {VOCAB_SIZE}\); got {VOCAB_SIZE}"),
        ({"prompt": [-1, 2]}, r"got -1"),
        ({"prompt": [1, 2.0]}, r"prompt_token_ids must be of type int; got 'float'"),
        ({"prompt": [True]}, r"prompt_token_ids must be of type int; got 'bool'"),
        ({"chunk_size": 0}, r"chunk_size must be a whole number of at least 1; got 0"),
        ({"chunk_size": 1.5}, r"chunk_size must be a whole number of at least 1; got 1.5"),
        ({"request_id": "in flight"}, r"must be unique among requests in flight; got 'in flight'"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(change, match):
    engine = fake_engine()
    engine.add(greedy_request("in flight", [1], 3))
    with pytest.raises(ValueError, match=r"\[engine.add\] .*" + match):
        engine.add(greedy_request(**{"request_id": "bad", "prompt": [1, 2]} | change))
    assert {e.request_id for e in drain(engine)} == {"in flight"}


@pytest.mark.parametrize(
    ("settings", "limit"),
    [({"max_model_len": 12}, 12), ({"num_pages": 5}, 20), ({"num_pages": 200}, 256)],
)
def test_a_prompt_that_cannot_fit_is_refused_with_both_numbers(settings, limit):
    engine = fake_engine(**settings)
    assert engine.max_model_len == limit
    with pytest.raises(ContextLengthError, match=f"must fit {limit} tokens; got {limit + 1}") as e:
        engine.add(greedy_request("a", [1] * limit))
    assert (e.value.num_tokens, e.value.max_model_len) == (limit + 1, limit)
    engine.add(greedy_request("b", [1] * (limit - 1), None))
    assert [x.finish_reason for x in drain(engine)] == ["length"]
    assert len(logits_of(engine, [1] * limit)) == limit


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"max_model_len": 257, "num_pages": 300}, "the model's context of 256 tokens; got 257"),
        ({"max_model_len": 257}, "got 257"),
        ({"max_model_len": 21, "num_pages": 5}, "the page pool of 20 tokens; got 21"),
        (
            {"max_num_seqs": 33, "max_batch_tokens": 32},
            "max_batch_tokens must be at least max_num_seqs - 1",
        ),
    ],
)
def test_settings_that_cannot_hold_are_refused(settings, match):
    with pytest.raises(ValueError, match=r"\[config\] .*" + match):
        fake_engine(**settings)


def test_a_full_queue_refuses_until_somebody_starts():
    engine = fake_engine(max_waiting=2)
    engine.add(greedy_request("a", [1]))
    engine.add(greedy_request("b", [1]))
    with pytest.raises(QueueFullError, match="at most 2 requests may wait"):
        engine.add(greedy_request("c", [1]))
    engine.step()
    engine.add(greedy_request("c", [1]))
    drain(engine)


def test_broken_logits_end_their_request_only():
    model = FakeCausalLM()
    model.nan_at = 60
    engine = fake_engine(model)
    engine.add(greedy_request("bad", [60], 5))
    engine.add(greedy_request("good", [5], 5))
    events = drain(engine)
    bad = last_of(events, "bad")
    assert (bad.finish_reason, bad.token_id) == ("error", None)
    assert "logits must be finite" in bad.error
    assert tokens_of(events, "good") == greedy_continuation([5], 5)
    assert engine.stats().pages_used == 0


def test_a_step_that_fails_ends_its_requests_and_the_engine_goes_on():
    model = FakeCausalLM()
    model.fail_at = 60
    engine = fake_engine(model)
    engine.add(greedy_request("bad", [60, 1], 5))
    engine.add(Request("bad too", (60,), return_logits=True))
    events = drain(engine)
    assert [e.finish_reason for e in events] == ["error", "error"]
    assert "[fake] this token breaks the model" in events[0].error
    assert engine.stats().pages_free == 64
    engine.add(greedy_request("good", [5], 5))
    assert tokens_of(drain(engine), "good") == greedy_continuation([5], 5)


def test_token_n_is_drawn_with_random_number_n_of_the_seed():
    sampling = SamplingParams(temperature=3.0, seed=4, max_tokens=20, ignore_eos=True)
    engine = fake_engine()
    engine.add(Request("a", (1, 2), sampling))
    ids = [1, 2]
    for n in range(20):
        ids.append(sample(history_logits(ids), sampling, 4, n))
    assert tokens_of(drain(engine), "a") == ids[2:]


def test_a_seed_gives_the_same_tokens_whatever_else_runs():
    sampling = {"temperature": 1.0, "seed": 11, "top_p": 0.9}
    alone = fake_engine()
    alone.add(greedy_request("a", [1, 2], 12, sampling=sampling))
    expected = tokens_of(drain(alone), "a")
    crowded = fake_engine(max_batch_tokens=11)
    for i in range(3):
        crowded.add(greedy_request(f"x{i}", [i] * 9, 7, sampling={"temperature": 1.0}))
    crowded.step()
    crowded.add(greedy_request("a", [1, 2], 12, sampling=sampling))
    crowded.add(greedy_request("other seed", [1, 2], 12, sampling=sampling | {"seed": 12}))
    events = drain(crowded)
    assert tokens_of(events, "a") == expected
    assert tokens_of(events, "other seed") != expected


def test_without_a_seed_requests_differ():
    engine = fake_engine()
    for i in range(2):
        engine.add(greedy_request(f"{i}", [1, 2], 12, sampling={"temperature": 5.0}))
    events = drain(engine)
    assert tokens_of(events, "0") != tokens_of(events, "1")


def test_a_closed_engine_takes_nothing_and_holds_nothing():
    engine = fake_engine()
    engine.add(greedy_request("a", [1, 2], 12))
    engine.step()
    engine.close()
    engine.close()
    assert engine.stats().pages_used == 0
    assert not engine.has_work
    with pytest.raises(EngineClosedError, match="the engine was closed"):
        engine.add(greedy_request("b", [1]))


def test_time_is_counted_by_what_a_step_holds(monkeypatch):
    now = itertools.count()  # each look at the clock takes a second
    skipped = [0]

    def clock() -> float:
        return float(next(now) + skipped[0])

    monkeypatch.setattr("time.perf_counter", clock)
    engine = fake_engine(clock=clock, max_itl_ms=1e9)

    def seconds() -> tuple[dict, dict]:
        stats = engine.stats()
        return dict(stats.step_seconds), dict(stats.forward_seconds)

    engine.add(greedy_request("a", [1, 2, 3], 4))
    engine.step()
    assert engine.stats().phase_steps == {"prefill": 1, "decode": 0}
    (step, forward) = seconds()
    assert forward == {"prefill": 1, "decode": 0}
    assert step["prefill"] > 1
    assert step["decode"] == 0
    engine.step()
    engine.add(greedy_request("b", [5], 2))
    drain(engine)
    assert engine.stats().phase_steps == {"prefill": 2, "decode": 2}
    assert seconds()[1] == {"prefill": 2, "decode": 2}

    skipped[0] = 1000  # idle: no step's time
    engine.add(greedy_request("c", [5], 20))
    engine.step()
    assert sum(seconds()[0].values()) < 1000
    skipped[0] = 2000  # between two steps of a request
    engine.step()
    assert 1000 < seconds()[0]["decode"] < 2000
    engine.abort("c")
    engine.step()
    skipped[0] = 3000  # idle again
    engine.add(greedy_request("d", [5], 1))
    drain(engine)
    assert sum(seconds()[0].values()) < 2000


def test_stats_count_what_happened():
    engine = fake_engine()
    engine.add(greedy_request("a", [1, 2, 3], 4))
    engine.add(greedy_request("b", [1], 4))
    assert engine.stats().num_waiting == 2
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.pages_used) == (2, 0, 2)
    assert stats.num_pages == stats.pages_free + stats.pages_cached + stats.pages_used == 64
    engine.abort("b")
    drain(engine)
    stats = engine.stats()
    assert stats.finished == {"length": 1, "abort": 1}
    assert (stats.prompt_tokens, stats.generated_tokens) == (4, 5)
    assert (stats.prefill_tokens, stats.prefill_chunks) == (4, {4: 1, 1: 1})
    assert (stats.preemptions, stats.max_itl_s) == (0, 0.1)
    assert (stats.weight_format, stats.kv_dtype, stats.kernel_target) == (
        "float32",
        "float32",
        "fake",
    )


@given(
    requests=st.lists(
        st.tuples(
            st.integers(0, 9),  # arrives at this step
            st.lists(st.integers(0, 3), min_size=1, max_size=14),  # few ids: prefixes collide
            st.integers(1, 9),
            st.none() | st.integers(0, 6),  # aborted that many steps later
            st.none() | st.integers(1, 4),
        ),
        min_size=1,
        max_size=8,
    ),
    num_pages=st.integers(6, 20),
    max_num_seqs=st.integers(1, 4),
)
def test_output_does_not_depend_on_what_arrives_when(requests, num_pages, max_num_seqs):
    engine = fake_engine(
        num_pages=num_pages, max_num_seqs=max_num_seqs, max_batch_tokens=max_num_seqs + 3
    )
    todo = sorted(enumerate(requests), key=lambda item: item[1][0])
    aborts: dict[str, int] = {}
    events = []
    now = 0
    while todo or engine.has_work:
        while todo and todo[0][1][0] <= now:
            i, (_, prompt, max_tokens, abort_after, chunk_size) = todo.pop(0)
            engine.add(greedy_request(f"r{i}", prompt, max_tokens, chunk_size=chunk_size))
            if abort_after is not None:
                aborts[f"r{i}"] = now + abort_after
        for request_id, at in aborts.items():
            if at == now:
                engine.abort(request_id)
        events += engine.step()
        now += 1
        assert now < 1000
    for i, (_, prompt, max_tokens, abort_after, _) in enumerate(requests):
        expected = greedy_continuation(prompt, max_tokens)
        said = tokens_of(events, f"r{i}")
        reasons = [e.finish_reason for e in events if e.request_id == f"r{i}"]
        assert [r for r in reasons if r] == [reasons[-1]]
        if reasons[-1] == "abort":
            assert abort_after is not None
            assert said == expected[: len(said)]
        else:
            assert said == expected
    stats = engine.stats()
    assert stats.pages_used == 0
    assert sum(stats.finished.values()) == len(requests)
