# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import pytest

from kt_kvcache.simulation.traces import TRACES


@pytest.mark.parametrize("name", TRACES)
def test_a_seed_gives_one_trace_and_another_seed_another(name):
    trace = TRACES[name](7, 60)
    assert trace == TRACES[name](7, 60)
    assert trace != TRACES[name](8, 60)
    assert trace == TRACES[name](7, 90)[:60]
    assert len(trace) == 60


@pytest.mark.parametrize("name", TRACES)
def test_every_request_asks_and_answers_and_some_continue_others(name):
    trace = TRACES[name](1, 200)
    assert all(request.prompt and request.answer for request in trace)
    answers = {block for request in trace for block in request.answer}
    assert any(answers & set(request.prompt) for request in trace)


def test_answers_are_new():
    answers = Counter(block for request in TRACES["mixed"](3, 300) for block in request.answer)
    asked: set[int] = set()
    for request in TRACES["mixed"](3, 300):
        assert not asked & set(request.answer)
        asked |= set(request.prompt) | set(request.answer)
    assert set(answers.values()) == {1}


def test_agents_share_long_prompts_and_scans_are_read_once():
    prompts = [request.prompt for request in TRACES["agents"](1, 300)]
    assert len({prompt[:30] for prompt in prompts}) <= 5
    long = [r.prompt for r in TRACES["scans"](5, 1500) if len(r.answer) == 1 and len(r.prompt) > 28]
    tails = Counter(prompt[8:28] for prompt in long)
    assert sum(count == 1 for count in tails.values()) >= 60
