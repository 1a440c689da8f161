# SPDX-License-Identifier: Apache-2.0
"""The step-time model against machines whose law is known."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_runtime.scheduler import StepBudget, StepTimeModel, StepWork

E, K = 128, 8


def touched(num_rows: int) -> float:
    """Expected distinct experts, one row at a time: a row finds those untouched so far."""
    count = 0.0
    for _ in range(num_rows):
        count += K * (E - count) / E
    return count


def machine(work: StepWork, faster: float = 1.0) -> float:
    """Seconds: 5 ms at all, 0.2 ms a decode, 0.5 ms a prompt token, 0.1 ms an expert, 1 us for a
    thousand tokens attended to."""
    rows = 2e-4 * work.num_decodes + 5e-4 * work.num_prefill_tokens
    experts = 1e-4 * touched(work.num_rows)
    return (5e-3 + rows + experts + 1e-6 * work.num_attended_tokens / 1000) / faster


PROBED = [
    *(StepWork(n, 0, n) for n in (1, 4)),
    *(StepWork().with_chunk(0, n) for n in (16, 64, 256, 512)),
    StepWork().with_chunk(4000, 64),
]
OTHERS = [
    *(StepWork(n, 0, 300 * n) for n in (2, 3, 8)),
    *(StepWork(n, 0, 300 * n).with_chunk(start, 100) for n in (1, 4, 8) for start in (0, 8000)),
    StepWork().with_chunk(3000, 300),
]


def probed_model() -> StepTimeModel:
    return StepTimeModel(E, K, [(work, machine(work)) for work in PROBED])


@pytest.mark.parametrize("work", PROBED + OTHERS)
def test_a_probe_of_seven_steps_tells_the_others(work):
    assert probed_model().seconds(work) == pytest.approx(machine(work), rel=0.05)


def test_an_unprobed_model_expects_nothing_and_learns():
    model = StepTimeModel(E, K)
    assert model.seconds(StepWork(4, 16, 200)) == 0
    for work in PROBED * 3:
        model.observe(work, machine(work))
    assert model.seconds(OTHERS[3]) == pytest.approx(machine(OTHERS[3]), rel=0.1)


def test_a_dense_model_has_no_experts():
    law = [(work, 0.01 + 1e-3 * work.num_rows) for work in PROBED]
    model = StepTimeModel(probed=law)
    assert model.seconds(StepWork(0, 128, 0)) == pytest.approx(0.138, rel=0.02)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_nineteen_of_twenty_noisy_steps_take_no_longer(noise):
    rng = random.Random(1)
    model = probed_model()
    chunks = [work for work in OTHERS if work.num_prefill_tokens]

    def late(rounds: int) -> float:
        count = 0
        for _ in range(rounds):
            for work in chunks:
                seconds = machine(work) * rng.uniform(1 - noise, 1 + noise)
                count += seconds > model.seconds(work)
                model.observe(work, seconds)
        return count / rounds / len(chunks)

    late(50)
    assert 0.03 < late(300) < 0.07
    for work in chunks:
        assert 1.0 < model.seconds(work) / machine(work) < 1.05 + noise


def test_one_pause_is_forgotten():
    model, work = probed_model(), OTHERS[4]
    for _ in range(50):
        model.observe(work, machine(work))
    model.observe(work, 60.0)
    assert model.seconds(work) == pytest.approx(machine(work), rel=0.1)


@pytest.mark.parametrize("faster", [0.25, 3.0])
def test_a_machine_that_changed_is_followed(faster):
    model = probed_model()
    for _ in range(50):
        for work in OTHERS:
            model.observe(work, machine(work))
    for _ in range(20):
        for work in OTHERS:
            model.observe(work, machine(work, faster))
    for work in OTHERS:  # the margin shrinks slowly
        assert 0.85 < model.seconds(work) / machine(work, faster) < 1.5
    for _ in range(80):
        for work in OTHERS:
            model.observe(work, machine(work, faster))
    for work in OTHERS:
        assert model.seconds(work) == pytest.approx(machine(work, faster), rel=0.15)


def test_what_is_not_seen_for_long_keeps_its_probed_time():
    model = probed_model()
    for _ in range(5000):
        model.observe(StepWork(4, 0, 4000), machine(StepWork(4, 0, 4000)))
    for work in PROBED:
        assert model.seconds(work) == pytest.approx(machine(work), rel=0.1)


def test_more_work_never_takes_less_time():
    rng = random.Random(2)
    model = StepTimeModel(E, K, [(work, rng.uniform(1e-3, 1e-2)) for work in PROBED])
    for _ in range(200):
        work = StepWork(rng.randrange(8), 0, rng.randrange(99)).with_chunk(0, rng.randrange(99))
        model.observe(work, rng.uniform(1e-4, 1.0))
        base = StepWork(2, 50, 1000)
        more = [base.with_decode(9), base.with_chunk(0, 1), base.with_chunk(500, 1)]
        assert all(model.seconds(w) >= model.seconds(base) >= 0 for w in more)


def test_a_clock_that_stands_still_does_no_harm():
    model = StepTimeModel(E, K)
    for work in PROBED * 5:
        model.observe(work, 0.0)
    assert model.seconds(OTHERS[-1]) == 0


def test_a_page_may_be_tried_before_any_chunk_was_seen():
    model = StepTimeModel(E, K, [(StepWork(1, 0, 1), 0.03)], page_size=16)
    decodes = StepWork(2, 0, 40)
    assert model.seconds(decodes) < math.inf
    assert model.seconds(decodes.with_chunk(0, 16)) < math.inf
    assert model.seconds(decodes.with_chunk(0, 17)) == math.inf
    assert model.seconds(decodes.with_chunk(1000, 16)) == math.inf


works = st.builds(
    lambda decodes, start, size: StepWork(decodes, 0, 50 * decodes).with_chunk(start, size),
    st.integers(0, 20),
    st.integers(0, 9000),
    st.integers(0, 600),
)


@given(seen=st.lists(works, max_size=8), work=works, probed=st.booleans())
def test_only_chunks_within_four_times_what_was_seen_have_a_duration(seen, work, probed):
    model = StepTimeModel(E, K, page_size=16)
    for other in seen:
        (model.probe if probed else model.observe)(other, machine(other))
    most_prefill = max([w.num_prefill_tokens for w in seen], default=0)
    most_attended = max([w.num_attended_tokens for w in seen], default=0)
    is_near = work.num_prefill_tokens <= max(16, 4 * most_prefill)
    is_near &= work.num_attended_tokens <= max(256, 16 * most_attended)
    assert (model.seconds(work) < math.inf) == (is_near or work.num_prefill_tokens == 0)


def test_a_first_long_chunk_counts_in_full_and_for_good():
    model = StepTimeModel(E, K, [(StepWork(1, 0, 1), machine(StepWork(1, 0, 1)))])
    chunks = [StepWork().with_chunk(0, size) for size in (16, 64, 256)]
    for work in chunks:  # each takes much longer than twice what the ones before let expect
        model.observe(work, machine(work))
        assert model.seconds(work) == pytest.approx(machine(work), rel=0.05)
    for _ in range(5000):
        model.observe(StepWork(4, 0, 4000), machine(StepWork(4, 0, 4000)))
    for work in chunks:
        assert model.seconds(work) == pytest.approx(machine(work), rel=0.1)


@given(slowness=st.floats(0.1, 10), max_itl_s=st.floats(0.05, 1.0), num_decodes=st.integers(1, 8))
def test_without_a_probe_no_step_takes_much_longer_than_it_may(slowness, max_itl_s, num_decodes):
    model = StepTimeModel(E, K)
    budget = StepBudget(model, max_batch_tokens=512, max_itl_s=max_itl_s, page_size=16)
    decodes = StepWork(num_decodes, 0, 100 * num_decodes)
    page = slowness * machine(decodes.with_chunk(0, 16))
    position = 0
    for _ in range(40):
        size = budget.chunk(decodes, position, 4096)
        work = decodes.with_chunk(position, size)
        seconds = slowness * machine(work)
        # The first chunks meet experts that nobody paid for yet.
        assert seconds <= max(1.5 * max_itl_s, 1.5 * page), (size, seconds)
        model.observe(work, seconds)
        position += size
