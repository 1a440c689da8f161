# SPDX-License-Identifier: Apache-2.0
"""What the counters make of steps beyond adding up."""

from types import SimpleNamespace

import pytest

from kt_runtime.counters import Counters
from kt_runtime.scheduler.step import Step, StepWork


def started(num_cached: int) -> Step:
    sequence = SimpleNamespace(num_prompt_tokens=100, num_cached_tokens=num_cached)
    return Step(started=[sequence])


def saved(counters: Counters) -> float:
    return counters.snapshot()["prefill_seconds_saved"]


def test_seconds_saved_are_those_of_the_fastest_prompts_so_far() -> None:
    counters = Counters()
    counters.scheduled(started(50))
    assert saved(counters) == 0  # nobody knows yet
    counters.took(Step(work=StepWork(1, 100)), 1.0, 0.1)  # an answer was in it, too
    assert saved(counters) == 0
    counters.took(Step(work=StepWork(0, 1)), 1.0, 0.5)  # what a step takes, not a token
    assert saved(counters) == 0
    counters.took(Step(work=StepWork(0, 100)), 99.0, 10.0)
    assert saved(counters) == pytest.approx(5.0)
    counters.took(Step(work=StepWork(0, 100)), 99.0, 20.0)
    counters.scheduled(started(10))
    assert saved(counters) == pytest.approx(6.0)
    counters.took(Step(work=StepWork(0, 100)), 9.0, 1.0)
    counters.scheduled(started(10))
    assert saved(counters) == pytest.approx(6.1)  # what was counted stays
