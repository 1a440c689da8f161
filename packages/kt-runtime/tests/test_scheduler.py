# SPDX-License-Identifier: Apache-2.0
"""The scheduler against counted pages: no tensors, no model, milliseconds."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_runtime.core import Request, SamplingParams
from kt_runtime.scheduler import ScheduledSequence, Scheduler, Sequence

PAGE_SIZE = 4


@dataclass
class CountedPages:
    """A PageAllocator that only counts, and hands each page id to one table at a time."""

    num_pages: int
    cached_tokens: int = 0
    free: set[int] = field(default_factory=set)
    asked: list[tuple[int, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free = set(range(self.num_pages))

    def allocate(self, prompt_token_ids, num_tokens, tenant, reuse):
        self.asked.append(tuple(prompt_token_ids))
        needed = -(-num_tokens // PAGE_SIZE)
        if needed > len(self.free):
            return None
        cached = min(self.cached_tokens, (len(prompt_token_ids) - 1) // PAGE_SIZE * PAGE_SIZE)
        return CountedTable(self, [self.free.pop() for _ in range(needed)], cached)


class CountedTable:
    def __init__(self, pages: CountedPages, page_ids: list[int], cached: int) -> None:
        self._pages = pages
        self.page_ids = page_ids
        self.num_cached_tokens = cached
        self.released = False

    def commit(self, token_ids, num_computed_tokens):
        assert not self.released

    def release(self):
        if not self.released:
            self.released = True
            assert not self._pages.free & set(self.page_ids)
            self._pages.free |= set(self.page_ids)


def sequence(arrival: int, num_prompt: int, max_tokens: int = 4, **settings) -> Sequence:
    request = Request(
        f"r{arrival}",
        tuple(range(num_prompt)),
        SamplingParams(max_tokens=max_tokens),
        **settings,
    )
    return Sequence(request, arrival=arrival, seed=0, max_model_len=1000)


def scheduler(pages: CountedPages, max_batch_tokens: int = 16, max_num_seqs: int = 8) -> Scheduler:
    return Scheduler(pages, max_batch_tokens=max_batch_tokens, max_num_seqs=max_num_seqs)


def compute(step: list[ScheduledSequence], sched: Scheduler) -> list[Sequence]:
    """Advance as the engine does, without a model; returns those that ended."""
    ended = []
    for share in step:
        seq, completes = share.sequence, share.completes
        seq.num_computed_tokens += share.num_new_tokens
        if completes and not seq.request.return_logits:
            seq.token_ids.append(0)
        if completes and (seq.request.return_logits or seq.finish_reason(()) is not None):
            sched.remove(seq.request.request_id)
            ended.append(seq)
    return ended


def shares(step: list[ScheduledSequence]) -> list[tuple[str, int]]:
    return [(s.sequence.request.request_id, s.num_new_tokens) for s in step]


def test_scheduler_imports_neither_torch_nor_numpy():
    code = "import sys, kt_runtime.scheduler; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_step_mixes_decodes_first_with_prefill_chunks():
    sched = scheduler(CountedPages(100))
    sched.add(sequence(0, 3))
    compute(sched.schedule(), sched)
    sched.add(sequence(1, 5))
    sched.add(sequence(2, 30))
    assert shares(sched.schedule()) == [("r0", 1), ("r1", 5), ("r2", 10)]


def test_a_long_prompt_is_computed_in_chunks_of_what_the_budget_leaves():
    sched = scheduler(CountedPages(100), max_batch_tokens=8)
    sched.add(sequence(0, 20))
    steps = []
    for _ in range(4):
        step = sched.schedule()
        steps.append(shares(step))
        compute(step, sched)
    assert steps == [[("r0", 8)], [("r0", 8)], [("r0", 4)], [("r0", 1)]]


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
        order += [s.arrival for s in compute(sched.schedule(), sched)]
        if 0 not in order:
            assert sched.num_waiting == 2
    assert order[0] == 0
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
    sched.add(sequence(0, 8, max_tokens=5))
    sched.add(sequence(1, 16, max_tokens=1))
    sched.add(sequence(2, 2, max_tokens=2))
    compute(sched.schedule(), sched)
    sched.remove("r1")
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
    assert sched.num_waiting == 1


def test_pages_are_reserved_for_prompt_and_output_but_not_for_the_last_token():
    pages = CountedPages(100)
    sched = scheduler(pages)
    sched.add(sequence(0, 5, max_tokens=4))  # KV of 8 tokens
    sched.add(sequence(1, 5, max_tokens=5))  # KV of 9 tokens
    sched.add(sequence(2, 8, return_logits=True))  # no output
    held = [len(s.sequence.page_table.page_ids) for s in sched.schedule()]
    assert held == [2, 3, 2]


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


@dataclass(frozen=True)
class Arrival:
    step: int
    num_prompt: int
    max_tokens: int
    abort_after: int | None  # steps after arrival
    return_logits: bool


arrivals = st.lists(
    st.builds(
        Arrival,
        step=st.integers(0, 12),
        num_prompt=st.integers(1, 30),
        max_tokens=st.integers(1, 8),
        abort_after=st.none() | st.integers(0, 6),
        return_logits=st.booleans(),
    ),
    max_size=12,
)


@given(
    arrivals=arrivals,
    num_pages=st.integers(10, 30),
    max_num_seqs=st.integers(1, 5),
    spare_tokens=st.integers(0, 20),
    cached_tokens=st.sampled_from([0, 4, 12]),
)
def test_whatever_arrives_and_leaves(
    arrivals, num_pages, max_num_seqs, spare_tokens, cached_tokens
):
    pages = CountedPages(num_pages, cached_tokens)
    budget = max_num_seqs + spare_tokens
    sched = scheduler(pages, budget, max_num_seqs)
    todo = sorted(arrivals, key=lambda a: a.step)
    live: dict[str, Sequence] = {}
    abort_at: dict[str, int] = {}
    ended: list[str] = []
    first_tokens: list[int] = []
    count = now = 0
    while todo or live:
        while todo and todo[0].step <= now:
            a = todo.pop(0)
            seq = sequence(count, a.num_prompt, a.max_tokens, return_logits=a.return_logits)
            live[seq.request.request_id] = seq
            if a.abort_after is not None:
                abort_at[seq.request.request_id] = now + a.abort_after
            sched.add(seq)
            count += 1
        for request_id in [r for r, at in abort_at.items() if at <= now and r in live]:
            aborted = sched.remove(request_id)
            assert aborted is live.pop(request_id)
            assert aborted.page_table is None or set(aborted.page_table.page_ids) <= pages.free
            ended.append(request_id)

        decoding = {s.request.request_id for s in sched.running if s.is_decoding}
        step = sched.schedule()
        scheduled = shares(step)
        ids = [request_id for request_id, _ in scheduled]
        assert len(set(ids)) == len(ids)
        assert sum(n for _, n in scheduled) <= budget
        assert len(sched.running) <= max_num_seqs
        # Every running decode advances, before anything else.
        assert set(ids[: len(decoding)]) == decoding
        assert all(n == 1 for _, n in scheduled[: len(decoding)])
        assert all(n >= 1 for _, n in scheduled)
        # Somebody always advances, so nothing waits for ever.
        assert step or not live
        held = [p for s in sched.running for p in s.page_table.page_ids]
        assert len(set(held)) == len(held)
        assert set(held) | pages.free == set(range(num_pages))
        for s in sched.running:
            assert s.num_computed_tokens <= len(s.page_table.page_ids) * PAGE_SIZE

        fresh = [s.sequence for s in step if s.completes and not s.sequence.is_decoding]
        first_tokens += [s.arrival for s in fresh]
        for s in compute(step, sched):
            del live[s.request.request_id]
            ended.append(s.request.request_id)
        now += 1
    assert sorted(ended) == sorted({f"r{i}" for i in range(count)})
    assert first_tokens == sorted(first_tokens)
    assert len(pages.free) == num_pages
