# SPDX-License-Identifier: Apache-2.0
"""The step budget against a given law of time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_runtime.scheduler import StepBudget, StepWork


class Law:
    """10 ms a step, 1 ms a row, 1 us a token attended to."""

    def seconds(self, work: StepWork) -> float:
        return 1e-2 + 1e-3 * work.num_rows + 1e-6 * work.num_attended_tokens

    def observe(self, work: StepWork, seconds: float) -> None:
        raise AssertionError("a budget has no clock")


def budget(max_itl_s: float = 0.1, max_batch_tokens: int = 512, page_size: int = 16) -> StepBudget:
    return StepBudget(
        Law(), max_batch_tokens=max_batch_tokens, max_itl_s=max_itl_s, page_size=page_size
    )


DECODES = StepWork(4, 0, 4000)  # 18 ms


def test_nothing_decodes_so_time_does_not_matter():
    assert budget(max_itl_s=0.001).chunk(StepWork(), 0, 10_000) == 512
    assert budget(max_itl_s=0.001).chunk(StepWork(0, 500, 0), 0, 10_000) == 12


@pytest.mark.parametrize(("max_itl_s", "size"), [(0.05, 31), (0.2, 167), (10.0, 508)])
def test_four_times_the_time_is_more_than_four_times_the_chunk(max_itl_s, size):
    assert budget(max_itl_s).chunk(DECODES, 0, 10_000) == size


def test_later_chunks_are_smaller_because_they_attend_to_more():
    sizes = [budget().chunk(DECODES, start, 10_000) for start in (0, 1000, 4000)]
    assert sizes == [78, 40, 16]


def test_what_fits_whole_is_taken_whole():
    assert budget().chunk(DECODES, 0, 20) == 20
    assert budget().chunk(DECODES, 0, 3) == 3


def test_a_page_in_four_steps_even_if_there_is_no_time():
    late = budget(max_itl_s=0.001)
    assert [late.chunk(DECODES, 0, 100) for _ in range(5)] == [4, 4, 4, 4, 4]
    assert budget(max_itl_s=0.001, page_size=1).chunk(DECODES, 0, 100) == 1
    assert budget(max_itl_s=0.001, page_size=18).chunk(DECODES, 0, 100) == 5


def test_that_quarter_of_a_page_is_for_all_prompts_of_a_step_together():
    late = budget(max_itl_s=0.001)
    assert late.chunk(DECODES, 0, 3) == 3
    after = DECODES.with_chunk(0, 3)
    assert late.chunk(after, 0, 100) == 1
    assert late.chunk(after.with_chunk(0, 1), 0, 100) == 0


def test_the_token_limit_holds_for_that_quarter_as_well():
    assert budget(max_itl_s=0.001, max_batch_tokens=6).chunk(DECODES, 0, 100) == 2


@given(
    decodes=st.integers(0, 40),
    attended=st.integers(0, 10**5),
    start=st.integers(0, 10**4),
    wanted=st.integers(1, 2000),
    max_itl_s=st.floats(0.001, 1.0),
    max_batch_tokens=st.integers(41, 600),
)
def test_the_chunk_is_the_largest_that_is_allowed(
    decodes, attended, start, wanted, max_itl_s, max_batch_tokens
):
    work = StepWork(decodes, 0, attended)
    size = budget(max_itl_s, max_batch_tokens).chunk(work, start, wanted)
    most = min(wanted, max_batch_tokens - decodes)
    assert 0 <= size <= most

    def in_time(n: int) -> bool:
        return decodes == 0 or Law().seconds(work.with_chunk(start, n)) <= max_itl_s

    least = min(4, most)  # a quarter of a page
    assert size >= least
    assert size == least or in_time(size)
    assert size == most or not in_time(size + 1)
