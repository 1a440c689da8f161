# SPDX-License-Identifier: Apache-2.0
"""The scheduler against counted pages: no tensors, no model, milliseconds."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from kt_runtime.core import Request, SamplingParams
from kt_runtime.scheduler import Scheduler, Sequence, Step, StepBudget, StepWork

from .counted_pages import PAGE_SIZE, CountedPages


@dataclass
class Law:
    """StepTimes of a machine on which each row takes as long, and each token attended to."""

    row_s: float = 0.0
    attended_s: float = 0.0

    def seconds(self, work: StepWork) -> float:
        return work.num_rows * self.row_s + work.num_attended_tokens * self.attended_s

    def observe(self, work: StepWork, seconds: float) -> None:
        raise AssertionError("the scheduler has no clock")


def sequence(arrival: int, num_prompt: int, max_tokens: int = 4, **settings) -> Sequence:
    request = Request(
        f"r{arrival}",
        tuple(range(num_prompt)),
        SamplingParams(max_tokens=max_tokens),
        **settings,
    )
    return Sequence(request, arrival=arrival, seed=0, max_model_len=1000)


def scheduler(
    pages: CountedPages,
    max_batch_tokens: int = 16,
    max_num_seqs: int = 8,
    row_s: float = 0.0,
    attended_s: float = 0.0,
    max_itl_s: float = 1.0,
) -> Scheduler:
    budget = StepBudget(
        Law(row_s, attended_s),
        max_batch_tokens=max_batch_tokens,
        max_itl_s=max_itl_s,
        page_size=PAGE_SIZE,
    )
    return Scheduler(pages, budget, max_num_seqs=max_num_seqs)


def compute(step: Step, sched: Scheduler) -> list[Sequence]:
    """Advance as the engine does, without a model; returns those that ended."""
    ended = []
    for share in step.shares:
        seq, completes = share.sequence, share.completes
        seq.num_computed_tokens += share.num_new_tokens
        if completes and not seq.request.return_logits:
            seq.token_ids.append(0)
        if completes and (seq.request.return_logits or seq.finish_reason(()) is not None):
            sched.remove(seq)
            ended.append(seq)
    return ended


def name(seq: Sequence) -> str:
    return seq.request.request_id


def shares(step: Step) -> list[tuple[str, int]]:
    return [(name(s.sequence), s.num_new_tokens) for s in step.shares]


def test_scheduler_imports_neither_torch_nor_numpy():
    code = "import sys, kt_runtime.scheduler; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_step_mixes_decodes_first_with_prefill_chunks():
    sched = scheduler(CountedPages(100))
    sched.add(sequence(0, 3))
    compute(sched.schedule(), sched)
    sched.add(sequence(1, 5))
    sched.add(sequence(2, 30))
    step = sched.schedule()
    assert shares(step) == [("r0", 1), ("r1", 5), ("r2", 10)]
    # The newest of 4 tokens; 1 + 2 + … + 5; 1 + 2 + … + 10.
    assert step.work == StepWork(1, 15, 4 + 15 + 55)
    assert [name(s) for s in step.started] == ["r1", "r2"]


def test_a_long_prompt_is_computed_in_chunks_of_what_the_budget_leaves():
    sched = scheduler(CountedPages(100), max_batch_tokens=8)
    sched.add(sequence(0, 20))
    steps = []
    for _ in range(4):
        step = sched.schedule()
        steps.append(shares(step))
        compute(step, sched)
    assert steps == [[("r0", 8)], [("r0", 8)], [("r0", 4)], [("r0", 1)]]
    assert step.work == StepWork(1, 0, 21)


def test_running_prefills_come_before_new_ones():
    sched = scheduler(CountedPages(100), max_batch_tokens=8)
    sched.add(sequence(0, 12))
    compute(sched.schedule(), sched)
    sched.add(sequence(1, 12))
    assert shares(sched.schedule()) == [("r0", 4), ("r1", 4)]


def test_chunk_size_limits_one_request_and_leaves_the_budget_to_others():
    sched = scheduler(CountedPages(100))
    sched.add(sequence(0, 9, chunk_size=1))
    sched.add(sequence(1, 9))
    assert shares(sched.schedule()) == [("r0", 1), ("r1", 9)]


def test_a_small_request_never_passes_a_large_one_that_waits_for_pages():
    pages = CountedPages(6)
    sched = scheduler(pages)
    sched.add(sequence(0, 8, max_tokens=5))  # 3 pages
    sched.add(sequence(1, 12, max_tokens=5))  # 4 pages: must wait
    sched.add(sequence(2, 2, max_tokens=2))  # 1 page: would fit
    order = []
    while len(order) < 3:
        order += [name(s) for s in compute(sched.schedule(), sched)]
        if "r0" not in order:
            assert len(sched.waiting) == 2
    assert order[0] == "r0"
    assert len(pages.free) == 6


def test_a_refused_head_is_not_matched_again_until_pages_came_back():
    pages = CountedPages(3)
    sched = scheduler(pages)
    sched.add(sequence(0, 8, max_tokens=5))
    sched.add(sequence(1, 8, max_tokens=5))
    while not compute(sched.schedule(), sched):
        assert len(pages.asked) == 2
    assert shares(sched.schedule()) == [("r1", 8)]


def test_a_waiting_head_that_is_aborted_lets_the_next_one_in():
    pages = CountedPages(4)
    sched = scheduler(pages)
    large = sequence(1, 16, max_tokens=1)
    sched.add(sequence(0, 8, max_tokens=5))
    sched.add(large)
    sched.add(sequence(2, 2, max_tokens=2))
    compute(sched.schedule(), sched)
    sched.remove(large)
    assert shares(sched.schedule()) == [("r0", 1), ("r2", 2)]


def test_reused_tokens_are_not_computed():
    sched = scheduler(CountedPages(100, cached_tokens=8))
    sched.add(sequence(0, 11))
    sched.add(sequence(1, 8))  # fully stored, but one page must be computed for its logits
    assert shares(sched.schedule()) == [("r0", 3), ("r1", 4)]


def test_no_more_sequences_run_than_allowed():
    sched = scheduler(CountedPages(100), max_num_seqs=2)
    for i in range(3):
        sched.add(sequence(i, 2))
    assert shares(sched.schedule()) == [("r0", 2), ("r1", 2)]
    assert len(sched.waiting) == 1


def test_a_sequence_starts_with_pages_for_one_token_more_and_grows():
    sched = scheduler(CountedPages(100))
    sched.add(sequence(0, 3, max_tokens=9))
    sched.add(sequence(1, 4, max_tokens=9))
    sched.add(sequence(2, 4, max_tokens=1))  # the only token of its output is never computed
    sched.add(sequence(3, 4, return_logits=True))  # no output
    step = sched.schedule()
    tables = [s.sequence.page_table for s in step.shares]
    assert [len(t.page_ids) for t in tables] == [1, 2, 1, 1]
    held = []
    while sched.running:
        compute(step, sched)
        held.append(len(tables[0].page_ids))
        step = sched.schedule()
    # KV of 3, 4, … 11 tokens
    assert held == [1, 1, 2, 2, 2, 2, 3, 3, 3]


def test_out_of_pages_the_newest_gives_up_its_own_and_comes_back_to_its_place():
    pages = CountedPages(4)
    sched = scheduler(pages)
    old, new, later = sequence(0, 7, max_tokens=6), sequence(1, 6, max_tokens=4), sequence(2, 1)
    for seq in (old, new, later):
        sched.add(seq)
    compute(sched.schedule(), sched)  # 2 pages each; nothing is left for the third
    said = list(new.token_ids)
    compute(sched.schedule(), sched)  # KV of 8 and 7 tokens
    said = list(new.token_ids)
    step = sched.schedule()  # 9 and 8 tokens
    assert (shares(step), step.num_preempted) == ([("r0", 1)], 1)
    assert (new.page_table, new.num_computed_tokens, new.num_preemptions) == (None, 0, 1)
    assert list(sched.waiting) == [new, later]
    assert len(pages.free) == 1
    while "r0" not in [name(s) for s in compute(step, sched)]:
        step = sched.schedule()
        assert shares(step) == [("r0", 1)]
    assert list(new.token_ids) == said  # what it said stays said
    step = sched.schedule()
    # All of its 8 tokens are computed again, in one chunk, before those of a later one.
    assert shares(step) == [("r1", 8), ("r2", 1)]
    assert [name(s) for s in step.started] == ["r2"]
    assert pages.asked[-2] == tuple(said)
    compute(step, sched)
    assert new.num_tokens == len(said) + 1


def test_what_a_preempted_sequence_said_is_computed_again_in_chunks():
    sched = scheduler(CountedPages(4), max_batch_tokens=5)
    old, new = sequence(0, 6, max_tokens=6), sequence(1, 5, max_tokens=9)
    sched.add(old)
    sched.add(new)
    while old not in compute(sched.schedule(), sched):
        pass
    assert (new.num_preemptions, new.num_tokens) == (1, 7)
    chunks = []
    while new.num_tokens == 7:
        step = sched.schedule()
        chunks += [(s.num_new_tokens, step.work.num_decodes) for s in step.shares]
        compute(step, sched)
    assert chunks == [(5, 0), (2, 0)]


def test_the_newest_preempts_itself_if_it_is_the_one_in_need():
    pages = CountedPages(4)
    sched = scheduler(pages)
    old, new = sequence(0, 4, max_tokens=4), sequence(1, 7, max_tokens=5)
    sched.add(old)
    sched.add(new)
    while new.num_preemptions == 0:
        step = sched.schedule()
        compute(step, sched)
    assert shares(step) == [("r0", 1)]
    assert list(sched.running) == [old]


def test_a_prompt_is_preempted_in_the_middle_too():
    pages = CountedPages(6)
    sched = scheduler(pages, max_batch_tokens=3)
    old, new = sequence(0, 3, max_tokens=9), sequence(1, 15, max_tokens=2)
    sched.add(old)
    compute(sched.schedule(), sched)
    sched.add(new)
    starts = []
    while new.num_preemptions == 0:
        step = sched.schedule()
        starts += [s.sequence.num_computed_tokens for s in step.shares if s.sequence is new]
        compute(step, sched)
    assert starts == [0, 2, 4, 6, 8]  # until the old one's KV takes a third page
    assert (new.num_computed_tokens, new.num_tokens) == (0, 15)
    assert len(pages.free) == 3


def test_priority_comes_before_arrival_and_pages_are_taken_from_the_least_urgent():
    pages = CountedPages(4)
    sched = scheduler(pages)
    slack, urgent = sequence(0, 7, max_tokens=6, priority=5), sequence(1, 7, 6, priority=-1)
    sched.add(slack)
    compute(sched.schedule(), sched)
    sched.add(sequence(2, 7, 6, priority=3))
    sched.add(urgent)
    step = sched.schedule()
    assert shares(step) == [("r0", 1), ("r1", 7)]
    compute(step, sched)
    assert [name(s) for s in sched.running] == ["r1", "r0"]
    step = sched.schedule()
    assert shares(step) == [("r1", 1)]  # r0 needed a third page and was the last to be served
    assert [name(s) for s in sched.waiting] == ["r2", "r0"]


@pytest.mark.parametrize("when", ["starting", "growing"])
def test_out_of_memory_over_pages_fails_that_sequence_only(when):
    pages = CountedPages(100)
    sched = scheduler(pages)
    sched.add(sequence(0, 4, max_tokens=9))
    if when == "growing":
        compute(sched.schedule(), sched)
        compute(sched.schedule(), sched)
        while len(next(iter(sched.running)).token_ids) % PAGE_SIZE != 1:
            compute(sched.schedule(), sched)
    sched.add(sequence(1, 4))
    pages.error = MemoryError("none left")
    step = sched.schedule()
    assert [(name(s), repr(e)) for s, e in step.failed] == [("r0", "MemoryError('none left')")]
    assert shares(step) == [("r1", 4)]
    assert [name(s) for s in sched.running] == ["r1"]
    assert not sched.waiting
    while len(sched.running):
        compute(sched.schedule(), sched)
    assert len(pages.free) == 100


def test_while_anything_decodes_chunks_are_as_large_as_time_allows():
    sched = scheduler(CountedPages(100), max_batch_tokens=100, row_s=0.01, max_itl_s=0.105)
    sched.add(sequence(0, 50, max_tokens=99))
    step = sched.schedule()
    assert shares(step) == [("r0", 50)]  # nobody waits for a token
    compute(step, sched)
    sched.add(sequence(1, 25))
    sched.add(sequence(2, 25))
    seen = []
    for _ in range(6):
        step = sched.schedule()
        seen.append(shares(step)[1:])
        compute(step, sched)
    assert seen[:2] == [[("r1", 9)], [("r1", 9)]]
    # The rest of r1 goes first.
    assert seen[2] == [("r1", 7), ("r2", 2)]
    assert seen[3] == [("r1", 1), ("r2", 8)]


def test_time_that_is_left_is_not_given_to_a_smaller_prompt():
    sched = scheduler(CountedPages(100), max_batch_tokens=100, attended_s=0.001, max_itl_s=0.1)
    sched.add(sequence(0, 4))
    compute(sched.schedule(), sched)
    for i, num_prompt in ((1, 20), (2, 2)):
        sched.add(sequence(i, num_prompt))
    # 5 + (1 + 2 + … + 13) = 96: a 14th token does not fit, two at the start of a prompt would.
    assert shares(sched.schedule()) == [("r0", 1), ("r1", 13)]


def test_a_limit_that_decodes_alone_exceed_slows_prompts_down_to_a_page_in_four_steps():
    sched = scheduler(CountedPages(100), max_batch_tokens=100, row_s=0.01, max_itl_s=0.005)
    sched.add(sequence(0, 5, max_tokens=99))
    compute(sched.schedule(), sched)
    sched.add(sequence(1, 10, max_tokens=99))
    sizes = []
    for _ in range(13):
        step = sched.schedule()
        sizes.append(step.work.num_prefill_tokens)
        compute(step, sched)
    assert sizes == [1] * 10 + [0] * 3


def test_the_context_bounds_the_output():
    request = Request("r", (1, 2, 3), SamplingParams())
    assert Sequence(request, arrival=0, seed=0, max_model_len=10).max_num_tokens == 10
    request = Request("r", (1, 2, 3), SamplingParams(max_tokens=100))
    assert Sequence(request, arrival=0, seed=0, max_model_len=10).max_num_tokens == 10


@pytest.mark.parametrize(
    ("sampling", "newest", "reason"),
    [
        (SamplingParams(), 7, "stop"),
        (SamplingParams(ignore_eos=True), 7, None),
        (SamplingParams(stop_token_ids=(5,)), 5, "stop"),
        (SamplingParams(stop_token_ids=(7,), ignore_eos=True), 7, "stop"),
        (SamplingParams(max_tokens=1), 4, "length"),
        (SamplingParams(max_tokens=1), 7, "stop"),
        (SamplingParams(), 4, None),
    ],
)
def test_finish_reason(sampling, newest, reason):
    seq = Sequence(Request("r", (1, 2), sampling), arrival=0, seed=0, max_model_len=100)
    seq.token_ids.append(newest)
    assert seq.finish_reason({7}) == reason


def loading(pages: CountedPages, *sequences: Sequence) -> tuple[Scheduler, Step]:
    sched = scheduler(pages)
    for each in sequences:
        sched.add(each)
    return sched, sched.schedule()


def test_a_sequence_that_loads_starts_when_it_has_something_to_compute():
    first, second = sequence(0, 11), sequence(1, 3)
    sched, step = loading(CountedPages(100, loads=True), first, second)
    assert (shares(step), step.started, sched.num_loading) == ([], [], 2)
    second.page_table.end_load(cached=0)
    step = sched.schedule()
    assert (shares(step), step.started, sched.num_loading) == ([("r1", 3)], [second], 1)
    compute(step, sched)
    first.page_table.end_load(cached=8)
    step = sched.schedule()
    assert (shares(step), step.started) == ([("r1", 1), ("r0", 3)], [first])
    assert first.num_cached_tokens == 8


def test_a_load_that_leaves_too_few_pages_sends_its_sequence_back_in_line():
    pages = CountedPages(100, loads=True)
    first, second = sequence(0, 11), sequence(1, 3)
    sched, _ = loading(pages, first, second)
    first.page_table.end_load(cached=4, fits=False)
    pages.loads, pages.cached_tokens = False, 4
    step = sched.schedule()
    assert shares(step) == [("r0", 7)]  # again, and before the other
    assert (first.num_preemptions, first.num_cached_tokens) == (0, 4)
    assert len(pages.asked) == 3


def test_what_goes_wrong_with_a_load_is_that_sequences_failure():
    pages = CountedPages(100, loads=True)
    first, second = sequence(0, 11), sequence(1, 3)
    sched, _ = loading(pages, first, second)
    error = MemoryError()
    first.page_table.end_load(cached=4, fits=error)
    second.page_table.end_load(cached=0)
    step = sched.schedule()
    assert step.failed == [(first, error)]
    assert shares(step) == [("r1", 3)]
    sched.remove(second)
    assert len(pages.free) == 100


def test_a_refused_head_is_asked_again_when_a_load_has_ended():
    pages = CountedPages(3)
    sched, _ = loading(pages, sequence(0, 8, max_tokens=5), sequence(1, 8, max_tokens=5))
    sched.schedule()
    assert len(pages.asked) == 2
    pages.num_loads_ended += 1
    sched.schedule()
    assert len(pages.asked) == 3


def decoding() -> tuple[Scheduler, Step]:
    """Two sequences with prompts of 3 and 4, about to decode for the first time."""
    sched = scheduler(CountedPages(100))
    for arrival in range(2):
        sched.add(sequence(arrival, 3 + arrival, max_tokens=5))
    compute(sched.schedule(), sched)
    return sched, sched.schedule()


def test_what_is_scheduled_ahead_is_what_comes_if_nothing_happens():
    sched, step = decoding()
    ahead = sched.schedule_ahead(step)
    compute(step, sched)
    assert sched.is_due(ahead)
    assert sched.schedule() == ahead
    assert shares(ahead) == [("r0", 1), ("r1", 1)]
    assert ahead.work == StepWork(2, 0, 5 + 6)


def test_what_is_scheduled_ahead_is_not_due_once_something_happened():
    sched, step = decoding()
    ahead = sched.schedule_ahead(step)
    compute(step, sched)
    sched.add(sequence(7, 5))
    assert not sched.is_due(ahead)
    assert ("r7", 5) in shares(sched.schedule())
    sched, step = decoding()
    ahead = sched.schedule_ahead(step)
    ended = step.shares[0].sequence
    compute(step, sched)
    sched.remove(ended)
    assert not sched.is_due(ahead)


def test_nothing_is_scheduled_ahead_beside_prompts_or_an_end():
    sched = scheduler(CountedPages(100))
    sched.add(sequence(0, 3, max_tokens=3))
    step = sched.schedule()
    assert sched.schedule_ahead(step) is None  # a prompt
    compute(step, sched)
    step = sched.schedule()
    sched.add(sequence(1, 3))
    assert sched.schedule_ahead(step) is None  # one who waits
    sched.remove(sched.waiting.first)
    assert sched.schedule_ahead(step) is not None
    compute(step, sched)
    assert sched.schedule_ahead(sched.schedule()) is None  # its last token comes now


@pytest.mark.parametrize("error", [None, MemoryError("none left")])
def test_nothing_is_scheduled_ahead_without_pages_for_it(error):
    """Nobody is preempted for a guess, nor does anybody fail for it."""
    pages = CountedPages(2)
    sched = scheduler(pages)
    sched.add(sequence(0, 3, max_tokens=9))
    sched.add(sequence(1, 3, max_tokens=9))
    compute(sched.schedule(), sched)
    step = sched.schedule()  # the fourth tokens, the last of their pages
    pages.error = error
    assert sched.schedule_ahead(step) is None
    assert len(sched.running) == 2
    assert all(s.sequence.num_preemptions == 0 for s in step.shares)
    assert pages.error is None
