# SPDX-License-Identifier: Apache-2.0
"""Penalties, log probabilities and prompts without answers through the engine, on the hash
model."""

from __future__ import annotations

import numpy as np
import pytest

from kt_runtime.core import InvalidFieldError, Request, SamplingParams
from kt_runtime.exec.logprobs import token_logprobs

from .fake_model import (
    EOS,
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

PROMPT = [(i * 7 + 1) % VOCAB_SIZE for i in range(30)]


def test_logprobs_are_of_the_raw_logits():
    sampling = {
        "logprobs": 3,
        "temperature": 0.5,
        "seed": 3,
        "repetition_penalty": 2.0,
        "logit_bias": {1: 8.0},
    }
    engine = fake_engine()
    engine.add(greedy_request("a", PROMPT, 10, sampling=sampling))
    engine.add(greedy_request("plain", PROMPT, 10))
    events = drain(engine)
    history = list(PROMPT)
    for event in [e for e in events if e.request_id == "a"]:
        expected = token_logprobs(history_logits(history), event.token_id, 3)
        assert event.logprobs == expected
        history.append(event.token_id)
    assert all(e.logprobs is None for e in events if e.request_id == "plain")


@pytest.mark.parametrize("chunk_size", [None, 1, 7])
@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_prompt_logprobs_come_once_and_are_those_of_every_position(chunk_size, max_tokens):
    engine = fake_engine()
    engine.add(greedy_request("warms the prefix store", PROMPT, 2))
    drain(engine)
    sampling = {"prompt_logprobs": 2}
    engine.add(greedy_request("a", PROMPT, max_tokens, sampling=sampling, chunk_size=chunk_size))
    engine.add(greedy_request("mate", [3, 4], 20))
    events = drain(engine)
    mine = [e for e in events if e.request_id == "a"]
    expected = [
        token_logprobs(history_logits(PROMPT[:i]), PROMPT[i], 2) for i in range(1, len(PROMPT))
    ]
    assert mine[0].prompt_logprobs == (None, *expected)
    assert all(e.prompt_logprobs is None for e in mine[1:])
    assert tokens_of(events, "a") == greedy_continuation(PROMPT, max_tokens)
    assert (mine[-1].finish_reason, mine[-1].num_cached_tokens) == ("length", 0)
    assert tokens_of(events, "mate") == greedy_continuation([3, 4], 20)


def test_a_request_for_no_tokens_computes_the_prompt_and_ends():
    engine = fake_engine(max_model_len=len(PROMPT))
    engine.add(greedy_request("a", PROMPT, 0))
    (event,) = drain(engine)
    assert (event.token_id, event.finish_reason, event.num_generated_tokens) == (None, "length", 0)
    assert engine.stats().pages_used == 0
    engine.add(greedy_request("again", PROMPT, 0))
    assert drain(engine)[-1].num_cached_tokens == 28  # what it computed can be reused


def test_penalties_hold_over_the_whole_request():
    engine = fake_engine()
    banned = dict.fromkeys(range(10, VOCAB_SIZE), -100)
    sampling = {"frequency_penalty": 2.0, "presence_penalty": 2.0, "logit_bias": banned}
    engine.add(greedy_request("a", [1], 10, sampling=sampling))
    said = tokens_of(drain(engine), "a")
    history, expected = [1], []
    for _ in range(10):
        logits = history_logits(history)[:10].astype(np.float64)
        for token in set(expected):
            logits[token] -= 2.0 + 2.0 * expected.count(token)
        expected.append(int(logits.argmax()))
        history.append(expected[-1])
    assert said == expected


def test_min_tokens_keeps_the_end_away():
    engine = fake_engine()
    sampling = {"ignore_eos": False, "logit_bias": {EOS: 100}, "min_tokens": 6}
    engine.add(greedy_request("a", [1], 20, sampling=sampling))
    said = tokens_of(drain(engine), "a")
    assert len(said) == 7
    assert (EOS in said[:6], said[6]) == (False, EOS)


def test_mates_with_other_settings_change_no_bit():
    settings = [
        {"temperature": 0.8, "top_p": 0.9, "logprobs": 5},
        {"temperature": 1.3, "top_k": 20, "repetition_penalty": 1.3},
        {"temperature": 1.0, "min_p": 0.1, "presence_penalty": 1.0, "logprobs": 0},
        {"temperature": 0.0, "prompt_logprobs": 1},
        {"temperature": 2.0, "logit_bias": {4: 5.0}, "min_tokens": 3, "frequency_penalty": -1.0},
    ]

    def request(i: int) -> Request:
        sampling = settings[i] | {"seed": i}
        return greedy_request(f"{i}", PROMPT[: 5 + i], 12, sampling=sampling)

    def news(events, request_id: str) -> list[tuple]:
        return [
            (e.token_id, e.logprobs, e.prompt_logprobs)
            for e in events
            if e.request_id == request_id
        ]

    crowd = fake_engine(max_batch_tokens=11)
    for i in range(len(settings)):
        crowd.add(request(i))
    events = drain(crowd)
    for i in range(len(settings)):
        alone = fake_engine()
        alone.add(request(i))
        assert news(events, f"{i}") == news(drain(alone), f"{i}")


def test_broken_logits_of_a_prompt_end_its_request_only():
    model = FakeCausalLM()
    model.nan_at = 60
    engine = fake_engine(model)
    engine.add(greedy_request("bad", [1, 60, 3], 5, sampling={"prompt_logprobs": 0}))
    engine.add(greedy_request("good", [5], 5))
    events = drain(engine)
    bad = last_of(events, "bad")
    assert (bad.finish_reason, bad.prompt_logprobs) == ("error", None)
    assert "logits must be finite" in bad.error
    assert tokens_of(events, "good") == greedy_continuation([5], 5)


def test_a_bias_on_an_unknown_id_is_refused_by_name():
    engine = fake_engine()
    with pytest.raises(
        InvalidFieldError, match=r"logit_bias ids must lie in \[0, 89\); got 89"
    ) as e:
        engine.add(greedy_request("a", [1], sampling={"logit_bias": {VOCAB_SIZE: 1}}))
    assert e.value.field == "logit_bias"


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"presence_penalty": 2.1}, r"presence_penalty must lie in \[-2, 2\]; got 2.1"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty must lie in"),
        ({"repetition_penalty": 0}, "repetition_penalty must lie in"),
        ({"repetition_penalty": "2"}, "repetition_penalty must be a number"),
        ({"logit_bias": {1: 101}}, r"logit_bias values must lie in \[-100, 100\]"),
        ({"logit_bias": {-1: 1}}, "logit_bias must be by token id"),
        ({"min_tokens": -1}, "min_tokens must be at least 0"),
        ({"min_tokens": 5, "max_tokens": 4}, r"min_tokens must be at most max_tokens \(4\); got 5"),
        ({"logprobs": 21}, "logprobs must be at most 20"),
        ({"prompt_logprobs": 1.5}, "prompt_logprobs must be a whole number"),
        ({"max_tokens": -1}, "max_tokens must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, rule):
    with pytest.raises(InvalidFieldError, match=r"\[sampling\] " + rule) as e:
        SamplingParams(**settings)
    assert e.value.field in settings
