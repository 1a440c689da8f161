# SPDX-License-Identifier: Apache-2.0
"""Engine: requests in, token events out, one scheduler step at a time. No text, no HTTP, no model
code.

The synchronous core is here; the thread and the asyncio bridge are in loop.py, the wiring of
checkpoint, kernels and pages in assembly.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from kt_runtime.assembly import EngineParts, assemble
from kt_runtime.booking import Booking
from kt_runtime.cache.store import by_tier
from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.config import EngineConfig
from kt_runtime.core import (
    EngineStats,
    FinishReason,
    Request,
    TokenEvent,
)
from kt_runtime.counters import Counters
from kt_runtime.exec.aside import Aside
from kt_runtime.exec.batch import build_batch, set_newest
from kt_runtime.exec.outputs import Floats, RequestOutputs
from kt_runtime.exec.probe import Probe
from kt_runtime.inbox import Inbox
from kt_runtime.loading import PackedModel
from kt_runtime.loop import EngineLoop
from kt_runtime.protocols import Batch
from kt_runtime.request_checks import check_request
from kt_runtime.scheduler import (
    Scheduler,
    Step,
    StepBudget,
    StepTimeModel,
    StepTimes,
    StepWork,
)

# A token every tenth of a second is twice as fast as people read. A machine that is slower than
# that even on its own still has half of each step for prompts.
_MAX_ITL_S = 0.1
_MAX_ITL_DECODES = 2.0
# After that long without a request the probe goes on: requests that follow each other closely never
# wait for it.
_PROBE_AFTER_S = 0.5
# A load that ends wakes the engine; pages that the store gives back by itself do not. So a step
# without work is followed by another one after a time that no reader notices.
_IDLE_S = 0.01


class _Planned(NamedTuple):
    """A step that is about to be computed.

    Attributes:
        step, batch: what, and its tensors.
        began: when, by the engine's clock.
        forward_seconds: of all forwards before it.
    """

    step: Step
    batch: Batch
    began: float
    forward_seconds: float


class Engine:
    """Continuous batching over paged KV for one model.

    Drive it either with `step` (from one thread) or with `generate` (asyncio; starts a thread that
    steps), not both. `add`, `abort` and `stats` are thread-safe.

    Args:
        parts: what it drives; `from_pretrained` makes them.
        config: the settings.
        times: predicts how long steps take, and learns it; None starts without any experience.
        probe: measures more of them while `generate`'s thread has nothing to do; None measures
            nothing.
        clock: seconds since some moment.

    Attributes:
        config: the settings.
        model_config: config.json of the model.
        shape: what the engine knows of the model.
        eos_token_ids: ids that end a sequence.
        max_model_len: most tokens of prompt and output together.
    """

    def __init__(
        self,
        parts: EngineParts,
        config: EngineConfig,
        *,
        times: StepTimes | None = None,
        probe: Probe | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config = config
        self.model_config = parts.model_config
        self.shape = parts.shape
        self.eos_token_ids = parts.eos_token_ids
        self.max_model_len = parts.max_model_len
        self._parts = parts
        self._times = times or _step_times(parts, config)
        self._probe = probe
        self._clock = clock
        if config.max_itl_ms is not None:
            self._max_itl_s = config.max_itl_ms / 1000
        else:
            idle_decode_s = self._times.seconds(StepWork().with_decode(1))
            self._max_itl_s = max(_MAX_ITL_S, _MAX_ITL_DECODES * idle_decode_s)
        budget = StepBudget(
            self._times,
            max_batch_tokens=config.max_batch_tokens,
            max_itl_s=self._max_itl_s,
            page_size=config.kv_page_size,
        )
        self._scheduler = Scheduler(parts.pool, budget, max_num_seqs=config.max_num_seqs)
        self._inbox = Inbox(
            self._scheduler,
            max_waiting=config.max_waiting,
            max_waiting_tokens=config.max_waiting_tokens,
            max_model_len=parts.max_model_len,
        )
        self._counters = Counters()
        self._outputs = RequestOutputs(self.eos_token_ids, self.shape.vocab_size)
        self._booking = Booking(
            self._scheduler, self._outputs, self._counters, self.eos_token_ids, self._inbox.end
        )
        self._last_end: float | None = None  # of the last step, if any request goes on
        self._measured: tuple[StepWork, float] | None = None  # what `_book` is to observe
        self._ahead: tuple[Step, Batch] | None = None  # the next step, if nothing happens
        # Held while stepping; for its whole life by the loop's thread once `generate` is used.
        self.stepping = threading.RLock()
        self._idle = False  # whether the last step had nothing to compute
        parts.pool.notify(self._inbox.wake)
        self._loop: EngineLoop | None = None
        self._loop_lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | ModelFiles | Future[PackedModel],
        config: EngineConfig | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Engine:
        """Load a checkpoint.

        Args:
            path: a Hugging Face directory with config.json and safetensors, or a GGUF file;
                what ModelFiles.open made of either, or what loading.start_packing does of that
                with the same config.
            config: None takes the defaults.
            progress: called with (bytes packed so far, bytes in all) while loading here.

        Raises:
            ValueError: `[checkpoint] …`, `[gguf] …` or `[config] …`: not a usable model or setting.
        """
        config = config or EngineConfig()
        parts = assemble(path, config, progress)
        times = _step_times(parts, config)
        probe = Probe(times, parts.runner, parts.shape, config, parts.max_model_len)
        probe.start()
        return cls(parts, config, times=times, probe=probe)

    def add(self, request: Request) -> None:
        """Queue a request; its events come out of later steps. Thread-safe.

        Raises:
            ContextLengthError: prompt (and one token more) longer than max_model_len.
            QueueFullError: max_waiting requests wait already, or max_waiting_tokens of prompts.
            EngineClosedError: the engine was closed or its thread died.
            ValueError: anything else wrong with the request: `[engine.add] rule; got actual`.
        """
        self.validate(request)
        self._inbox.add(request)

    def abort(self, request_id: str, reason: FinishReason = "abort") -> None:
        """End a request with the next step, which frees its pages. Thread-safe, idempotent.

        An id that is not in flight is ignored: it may have ended a moment ago.

        Args:
            request_id: which one.
            reason: what its last event says; "stop" where a stop string ended its text.
        """
        self._inbox.abort(request_id, reason)

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended yet."""
        return len(self._inbox) > 0

    def wait_for_work(self) -> None:
        """Block until a request is in flight or the engine is closed; while all that are wait for
        stored KV, or for pages that the store is reading or writing, a little longer. A request
        that arrives while the probe goes on waits for one of its steps at most."""

        while self._probe is not None and not self._probe.is_done:
            if self._inbox.wait(_PROBE_AFTER_S):
                break
            self._probe.step()
        self._inbox.wait()
        if self._idle:
            self._inbox.wait_for_news(_IDLE_S)

    def step(self) -> list[TokenEvent]:
        """Schedule and compute one step. Returns the news in step order; empty without work.

        An error while computing (a kernel's, the model's) ends the requests of that step with
        finish_reason "error"; the engine goes on.

        Raises:
            RuntimeError: another thread steps this engine.
        """
        with self._one_thread():
            planned = self._plan()
            if planned is not None:
                self._settle(planned, self._forward(planned))
            return self._book()

    def step_overlapped(self, aside: Aside, deliver: Callable[[list[TokenEvent]], None]) -> None:
        """The same, but while this step computes, another thread books the one before it, hands
        over its news and schedules the one after it.

        Args:
            aside: the other thread.
            deliver: gets the news since the last call; in that thread, or in this one where there
                is nothing to compute.

        Raises:
            RuntimeError: another thread steps this engine.
        """
        with self._one_thread():
            planned = self._plan()
            if planned is None:
                deliver(self._book())
                return

            def meanwhile() -> None:
                deliver(self._book())
                self._look_ahead(planned.step)

            self._settle(planned, aside.during(lambda: self._forward(planned), meanwhile))

    def take_logits(self, request_id: str) -> Floats:
        """Logits of a finished return_logits request, (num_prompt_tokens, vocab_size); once.

        Raises:
            ValueError: no such logits.
        """
        if not self._outputs.holds_logits(request_id) or request_id in self._inbox:
            raise ValueError(
                "[engine.take_logits] request_id must name a finished return_logits request whose "
                f"logits were not taken yet; got {request_id!r}"
            )
        return self._outputs.take_logits(request_id)

    def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """Stream a request's events to asyncio: `async for event in engine.generate(request)`.

        The request is added when iteration starts, and errors of `add` are raised there. Leaving
        the iteration early (cancellation, aclose) aborts the request. If the engine's thread dies,
        the last event carries finish_reason "error".
        """
        with self._loop_lock:
            if self._loop is None:
                self._loop = EngineLoop(self)
            loop = self._loop
        return loop.generate(request)

    def stats(self) -> EngineStats:
        """A snapshot. Thread-safe; never waits for a step."""
        parts, runner = self._parts, self._parts.runner
        store = parts.store.stats()
        store_counters, store_gauges = by_tier(store)
        num_running = len(self._scheduler.running)
        return EngineStats(
            num_running=num_running,
            num_waiting=max(0, len(self._inbox) - num_running),
            num_loading=self._scheduler.num_loading,
            num_pages=store.num_pages,
            pages_free=store.free_pages,
            pages_cached=store.cached_pages,
            pages_used=store.pinned_pages + store.reserved_pages,
            steps=runner.steps,
            graph_steps=runner.graph_steps,
            max_itl_s=self._max_itl_s,
            backend=self.config.backend,
            kernel_target=parts.kernel_target(),
            weight_format=self.config.weight_format,
            weight_formats=parts.weight_formats,
            kv_dtype=self.config.resolved_kv_dtype,
            **self._counters.snapshot(),
            eager_ops=dict(runner.eager_ops),
            op_counts=parts.op_counts(),
            store_counters=store_counters,
            store_gauges=store_gauges,
        )

    def refuse(self, reason: str) -> None:
        """Take no more requests, and end those in flight ("abort") with the next step: the part of
        `close` that waits for nothing. Thread-safe, idempotent."""
        self._inbox.close(reason)

    def close(self, reason: str = "the engine was closed") -> None:
        """End all requests ("abort"), the thread, and the prefix store, after what it keeps on disk
        is there. Idempotent; later adds are refused."""
        self.refuse(reason)
        with self._loop_lock:
            loop = self._loop
        if loop is not None:
            loop.join()
            self._parts.store.close()
        elif self.stepping.acquire(blocking=False):
            self._take_inbox()
            self._book()
            self._parts.store.close()
            self.stepping.release()

    @property
    def closed_reason(self) -> str | None:
        """Why no more requests are taken: the reason given to `close`, or how the thread died."""
        return self._inbox.closed_reason

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def validate(self, request: Request) -> None:
        """The checks of `add` that depend on the request alone. Thread-safe.

        Raises:
            ContextLengthError, ValueError: as `add`.
        """
        check_request(
            request,
            vocab_size=self.shape.vocab_size,
            max_model_len=self.max_model_len,
            takes_priority=self.config.schedule_policy == "priority",
        )

    def _take_inbox(self) -> None:
        """Arrivals may be scheduled, and what was aborted ends."""
        for sequence, reason in self._inbox.take():
            error = self._inbox.closed_reason if reason == "abort" else None
            self._booking.finish(sequence, reason, error)

    @contextmanager
    def _one_thread(self) -> Iterator[None]:
        if not self.stepping.acquire(blocking=False):
            raise RuntimeError("[engine.step] one thread at a time may step; another one does")
        try:
            yield
        finally:
            self.stepping.release()

    def _plan(self) -> _Planned | None:
        """The next step, ready to be computed; None without work."""
        # What happens between two steps of running requests belongs to the second.
        began = self._clock() if self._last_end is None else self._last_end
        self._last_end = None
        self._take_inbox()
        ahead, self._ahead = self._ahead, None
        if ahead is not None and self._scheduler.is_due(ahead[0]):
            step, batch = ahead
            set_newest(batch, step.shares)
        else:
            step = self._scheduler.schedule()
            self._idle = not step.shares
            self._counters.scheduled(step)
            for sequence, error in step.failed:
                self._booking.fail(sequence, error)
            if not step.shares:
                return None
            try:
                batch = build_batch(step.shares, self.config.kv_page_size)
            except Exception as error:  # out of memory, say
                self._fail(step, error)
                return None
        return _Planned(step, batch, began, self._parts.runner.seconds)

    def _look_ahead(self, step: Step) -> None:
        """Have the next step ready in case that nothing happens until this one is computed."""
        ahead = self._scheduler.schedule_ahead(step)
        if ahead is not None:
            # What fails here fails again where it is nobody's guess, or does not.
            with suppress(Exception):
                self._ahead = ahead, build_batch(ahead.shares, self.config.kv_page_size, ahead=1)

    def _forward(self, planned: _Planned) -> Floats | Exception:
        """Logits, or what went wrong. Touches nothing that `_book` and `_look_ahead` do."""
        try:
            return self._parts.runner.run(planned.batch).numpy()
        except Exception as error:
            return error

    def _settle(self, planned: _Planned, result: Floats | Exception) -> None:
        """What the next step depends on: tokens, and who has ended."""
        step, began, forward_before = planned.step, planned.began, planned.forward_seconds
        if isinstance(result, Exception):
            self._fail(step, result)
        else:
            self._booking.choose(step, result, self._parts.runner.fault)
            self._counters.computed(step)
        now = self._clock()
        self._counters.took(step, now - began, self._parts.runner.seconds - forward_before)
        self._last_end = now if self._scheduler.has_work else None
        if not isinstance(result, Exception):
            self._measured = step.work, now - began

    def _fail(self, step: Step, error: Exception) -> None:
        """Whatever failed, it is these requests' failure, not the engine's."""
        for sequence, _ in step.shares:
            self._booking.fail(sequence, error)

    def _book(self) -> list[TokenEvent]:
        """The rest of what has been computed so far."""
        if self._measured is not None:
            self._times.observe(*self._measured)
            self._measured = None
        return self._booking.book()


def _step_times(parts: EngineParts, config: EngineConfig) -> StepTimeModel:
    """Without any experience."""
    shape = parts.shape
    return StepTimeModel(shape.num_experts, shape.top_k, page_size=config.kv_page_size)
