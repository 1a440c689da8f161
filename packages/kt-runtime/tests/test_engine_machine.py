# SPDX-License-Identifier: Apache-2.0
"""Random arrivals, aborts and steps against what the scheduler promises, step by step.

The model's logits are a hash of the history in its pages, so a wrong page, a lost token or a page
shared too early changes what a request says. Time is a law of the step's work. Stored pages come
back as late and as incompletely as it happens.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kt_runtime.core import Request, TokenEvent
from kt_runtime.exec.aside import Aside
from kt_runtime.scheduler import Sequence, StepWork

from .fake_model import drain, fake_engine, greedy_continuation, greedy_request
from .slow_storage import SlowLoad, SlowStorage

PAGE_SIZE = 4
# What prompts have in common, and what was stored before the engine started.
SHARED = [0, 1, 2, 0, 2, 1, 1, 0, 0, 2, 2, 1, 0, 1, 0, 2, 1, 1, 2, 2]


class Law:
    """StepTimes of a known machine; keeps the work of the steps that were computed."""

    def __init__(self) -> None:
        self.works: list[StepWork] = []

    def seconds(self, work: StepWork) -> float:
        return 1e-3 + 1e-3 * work.num_rows + 1e-5 * work.num_attended_tokens

    def observe(self, work: StepWork, seconds: float) -> None:
        self.works.append(work)


class EngineMachine(RuleBasedStateMachine):
    """What is promised of each step is checked in `step`, of each moment in the invariants."""

    @initialize(
        num_pages=st.integers(6, 16),
        max_num_seqs=st.integers(1, 5),
        spare=st.integers(0, 12),
        max_itl_ms=st.sampled_from([0.5, 8.0, 14.0, 1000.0]),
        schedule_policy=st.sampled_from(["fcfs", "fcfs", "priority"]),
        cpu_graph=st.booleans(),
        enable_prefix_cache=st.sampled_from([True, True, True, False]),
        stores=st.sampled_from([True, True, False]),
        overlapped=st.booleans(),
    )
    def start(
        self, max_num_seqs: int, spare: int, stores: bool, overlapped: bool, **drawn: object
    ) -> None:
        self.law = Law()
        self.aside = Aside("machine-aside") if overlapped else None
        self.storage = SlowStorage() if stores else None
        self.num_loads = 0
        if self.storage is not None:
            with fake_engine(storage=self.storage) as before:
                before.add(greedy_request("before", SHARED, 1))
                drain(before)
        self.engine = fake_engine(
            times=self.law,
            storage=self.storage,
            max_num_seqs=max_num_seqs,
            max_batch_tokens=max_num_seqs - 1 + PAGE_SIZE + spare,
            **drawn,
        )
        self.requests: dict[str, Request] = {}
        self.events: dict[str, list[TokenEvent]] = {}
        self.aborted: set[str] = set()
        self.first_tokens: list[int] = []

    @property
    def running(self) -> list[Sequence]:
        return list(self.engine._scheduler.running)

    @property
    def loads(self) -> list[SlowLoad]:
        return self.storage.loads if self.storage is not None else []

    @rule(
        num_shared=st.integers(0, len(SHARED)),
        own=st.lists(st.integers(0, 2), min_size=1, max_size=3),
        max_tokens=st.integers(1, 9),
        priority=st.integers(-2, 2),
        kind=st.sampled_from(["text", "text", "text", "logits"]),
    )
    def add(
        self, num_shared: int, own: list[int], max_tokens: int, priority: int, kind: str
    ) -> None:
        request_id = f"{len(self.requests)}"
        fcfs = self.engine.config.schedule_policy == "fcfs"
        request = greedy_request(
            request_id,
            SHARED[:num_shared] + own,
            max_tokens,
            priority=0 if fcfs else priority,
            return_logits=kind == "logits",
        )
        self.engine.add(request)
        self.requests[request_id] = request
        self.events[request_id] = []

    @precondition(lambda self: self.requests)
    @rule(pick=st.integers(0, 10**6))
    def abort(self, pick: int) -> None:
        request_id = f"{pick % len(self.requests)}"
        self.engine.abort(request_id)
        if not self.ended(request_id):
            self.aborted.add(request_id)

    @precondition(lambda self: self.loads)
    @rule(pick=st.integers(0, 10**6), share=st.sampled_from([0.0, 0.5, 0.7, 1.0, 1.0]))
    def end_load(self, pick: int, share: float) -> None:
        load = self.loads[pick % len(self.loads)]
        load.end(int(share * len(load.lease.hashes)))
        self.num_loads += 1

    @precondition(lambda self: self.storage is not None)
    @rule()
    def forget(self) -> None:
        """What was shared leaves memory, and stays in storage."""
        space = self.engine._parts.pool._space_of(None).space
        space.drop(space.chain(SHARED[:PAGE_SIZE]))

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.one_step()

    def one_step(self) -> None:
        before = self.running
        aborting = set(self.aborted)
        decoding = [s for s in before if s.is_decoding]
        loading = [s for s in before if s.is_loading]
        computed = {s: s.num_computed_tokens for s in before}
        preempted = {s: s.num_preemptions for s in before}
        num_steps, num_forwards = len(self.law.works), self.engine.stats().steps
        num_tokens = {s: s.num_tokens for s in before}
        events: list[TokenEvent] = []
        if self.aside is None:
            events += self.engine.step()
        else:
            self.engine.step_overlapped(self.aside, events.extend)
        for event in events:
            said = self.events[event.request_id]
            assert not said or said[-1].finish_reason is None
            if not said and event.token_id is not None:
                self.first_tokens.append(int(event.request_id))
            said.append(event)

        # An aborted request has ended, and holds nothing.
        for request_id in aborting:
            assert self.ended(request_id)
        assert not {s.request.request_id for s in self.running} & aborting

        # A running decode advances by one token, or made room for one before it.
        said_now = [e.request_id for e in events if e.token_id is not None]
        assert len(set(said_now)) == len(said_now)
        for sequence in decoding:
            request_id = sequence.request.request_id
            if request_id in aborting:
                continue
            if sequence.num_preemptions == preempted[sequence]:
                assert sequence.num_tokens == num_tokens[sequence] + 1
                assert request_id in said_now or self.aside is not None
            else:
                # All that are served after it went before it.
                after = [s for s in before if s.order > sequence.order]
                others = [s for s in after if s.request.request_id not in aborting]
                assert all(s.num_preemptions > preempted[s] for s in others if s not in loading)

        if len(self.law.works) > num_steps:
            self.check_budget(self.law.works[-1])

        # Who waits for a load computes nothing, and is all that a step without work leaves.
        if self.running and self.engine.stats().steps == num_forwards:
            assert any(s.is_loading for s in self.running)

        # The first prompt that runs and is not loading moves on in every step.
        alive = {s: s.num_computed_tokens for s in self.running}
        prefilling = [s for s in before if s in alive and not (s.is_decoding or s.is_loading)]
        if prefilling:
            first = prefilling[0]
            assert alive[first] > computed[first] or first.num_preemptions > preempted[first]

    def check_budget(self, work: StepWork) -> None:
        config = self.engine.config
        assert work.num_rows <= config.max_batch_tokens
        if work.num_decodes and work.num_prefill_tokens:
            in_time = self.law.seconds(work) <= config.max_itl_ms / 1000
            if not in_time:  # only as a quarter of a page
                assert work.num_prefill_tokens <= -(-PAGE_SIZE // 4)

    def ended(self, request_id: str) -> bool:
        events = self.events[request_id]
        return bool(events) and events[-1].finish_reason is not None

    @invariant()
    def pages_are_conserved(self) -> None:
        if not hasattr(self, "engine"):
            return
        stats = self.engine.stats()
        assert stats.pages_free + stats.pages_cached + stats.pages_used == stats.num_pages
        detached = any(load.detached for load in self.loads)
        assert (stats.pages_used == 0) == (not self.running and not detached)
        assert len(self.running) <= self.engine.config.max_num_seqs
        for sequence in self.running:
            pages = sequence.page_table.page_ids
            assert len(set(pages)) == len(pages)
            assert sequence.num_computed_tokens <= len(pages) * PAGE_SIZE

    @invariant()
    def what_is_said_depends_on_the_prompt_alone(self) -> None:
        if not hasattr(self, "engine"):
            return
        for request_id, events in self.events.items():
            said = [e.token_id for e in events if e.token_id is not None]
            request = self.requests[request_id]
            if request.return_logits:
                assert not said
            elif said:
                prompt = request.prompt_token_ids
                assert said == greedy_continuation(prompt, len(said))
            numbers = [e.num_generated_tokens for e in events if e.token_id is not None]
            assert numbers == list(range(1, len(said) + 1))

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        try:
            self.finish()
        finally:
            if self.aside is not None:
                self.aside.close()

    def finish(self) -> None:
        steps = 0
        while self.engine.has_work or self.loads:
            for load in list(self.loads)[:1]:
                load.end(len(load.lease.hashes))
            self.one_step()
            steps += 1
            assert steps < 2000
        for request_id, events in self.events.items():
            reasons = [e.finish_reason for e in events if e.finish_reason]
            assert len(reasons) == 1
            assert reasons[0] in (
                ("abort", "length") if request_id in self.aborted else ("length",)
            )
            if reasons[0] == "length" and not self.requests[request_id].return_logits:
                request = self.requests[request_id]
                room = self.engine.max_model_len - len(request.prompt_token_ids)
                expected = min(request.sampling.max_tokens, room)
                assert events[-1].num_generated_tokens == expected
        if self.engine.config.schedule_policy == "fcfs" and not self.num_loads:
            assert self.first_tokens == sorted(self.first_tokens)
        stats = self.engine.stats()
        assert stats.pages_used == 0
        assert sum(stats.finished.values()) == len(self.requests)


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
