# SPDX-License-Identifier: Apache-2.0
"""The engine's thread and the asyncio bridge: streaming, cancellation, death, closing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from kt_runtime.core import ContextLengthError, EngineClosedError, TokenEvent
from kt_runtime.engine import Engine

from .fake_model import (
    VOCAB_SIZE,
    FakeCausalLM,
    fake_engine,
    greedy_continuation,
    greedy_request,
    tokens_of,
)
from .tiny_models import tiny_checkpoint


class SlowModel(FakeCausalLM):
    """Gives tests time to act between steps; can be held still, or made to die."""

    def __init__(self) -> None:
        super().__init__()
        self.may_run = threading.Event()
        self.may_run.set()
        self.die = False

    def forward(self, ops, batch, kv):
        self.may_run.wait(10)
        time.sleep(0.002)
        if self.die:
            raise SystemExit("no more")  # not an Exception: nothing below the thread catches it
        return super().forward(ops, batch, kv)


def slow_engine(**settings) -> tuple[Engine, SlowModel]:
    model = SlowModel()
    return fake_engine(model, **({"cpu_graph": False} | settings)), model


async def collect(engine: Engine, request) -> list[TokenEvent]:
    return [event async for event in engine.generate(request)]


async def until(condition, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def test_streams_carry_all_tokens_and_one_end():
    with fake_engine() as engine:
        prompts = [[i, i + 1] for i in range(5)]
        streams = await asyncio.gather(
            *(collect(engine, greedy_request(f"{i}", p, 9)) for i, p in enumerate(prompts))
        )
    for i, (prompt, events) in enumerate(zip(prompts, streams, strict=True)):
        assert tokens_of(events, f"{i}") == greedy_continuation(prompt, 9)
        assert [e.finish_reason for e in events] == [None] * 8 + ["length"]


async def test_one_wake_up_per_step_however_many_streams(monkeypatch):
    engine, model = slow_engine()
    model.may_run.clear()
    wake_ups = []
    loop = asyncio.get_running_loop()
    original = loop.call_soon_threadsafe

    def counted(callback, *args, **kwargs):
        if threading.current_thread().name.startswith("kt-engine"):
            wake_ups.append(callback)
        return original(callback, *args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    with engine:
        tasks = [
            asyncio.create_task(collect(engine, greedy_request(f"{i}", [i], 6))) for i in range(4)
        ]
        await until(lambda: engine.stats().num_running + engine.stats().num_waiting == 4)
        model.may_run.set()
        await asyncio.gather(*tasks)
        assert len(wake_ups) == engine.stats().steps < 4 * 6


async def test_cancelling_a_reader_aborts_its_request():
    engine, _ = slow_engine()
    with engine:
        other = asyncio.create_task(collect(engine, greedy_request("other", [9], 30)))
        task = asyncio.create_task(collect(engine, greedy_request("gone", [1, 2, 3], 200)))
        await until(lambda: engine.stats().generated_tokens > 4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: engine.stats().finished.get("abort") == 1)
        assert engine.stats().num_running <= 1
        assert tokens_of(await other, "other") == greedy_continuation([9], 30)
        assert engine.stats().pages_used == 0


async def test_leaving_a_stream_early_aborts_its_request():
    engine, _ = slow_engine()
    with engine:
        stream = engine.generate(greedy_request("a", [1], 200))
        assert (await anext(stream)).token_id == greedy_continuation([1], 1)[0]
        await stream.aclose()
        await until(lambda: engine.stats().finished.get("abort") == 1)
        assert engine.stats().pages_used == 0


async def test_a_request_aborted_for_a_reason_is_counted_as_ended_for_it():
    with slow_engine()[0] as engine:
        stream = engine.generate(greedy_request("a", [1], 200))
        await anext(stream)
        engine.abort("a", "stop")  # its text came to a stop string
        await stream.aclose()
        await until(lambda: not engine.has_work)
        assert engine.stats().finished == {"stop": 1}


async def test_errors_of_add_are_raised_to_the_reader():
    with fake_engine() as engine:
        with pytest.raises(ContextLengthError):
            await anext(engine.generate(greedy_request("a", [1] * 300)))
        with pytest.raises(ValueError, match="must lie in"):
            await anext(engine.generate(greedy_request("a", [VOCAB_SIZE])))
        assert len(await collect(engine, greedy_request("a", [1], 3))) == 3


async def test_a_second_request_of_the_same_id_does_not_disturb_the_first():
    engine, _ = slow_engine()
    with engine:
        first = asyncio.create_task(collect(engine, greedy_request("a", [1], 20)))
        await until(lambda: engine.stats().num_running == 1)
        with pytest.raises(ValueError, match="must be unique"):
            await anext(engine.generate(greedy_request("a", [2], 3)))
        assert tokens_of(await first, "a") == greedy_continuation([1], 20)


async def test_when_the_thread_dies_every_reader_hears_of_it():
    engine, model = slow_engine(max_num_seqs=2)
    tasks = [
        asyncio.create_task(collect(engine, greedy_request(f"{i}", [i], 200))) for i in range(3)
    ]
    await until(lambda: engine.stats().generated_tokens > 4)
    model.die = True
    for i, events in enumerate(await asyncio.wait_for(asyncio.gather(*tasks), 10)):
        last = events[-1]
        assert (last.request_id, last.finish_reason) == (f"{i}", "error")
        assert "the engine's thread died: SystemExit: no more" in last.error
        assert last.num_generated_tokens == len(events) - 1
    with pytest.raises(EngineClosedError, match="thread died"):
        await anext(engine.generate(greedy_request("late", [1])))
    assert "thread died" in engine.closed_reason
    engine.close()


async def test_readers_hear_of_a_death_before_the_store_is_closed(monkeypatch):
    """Which may take as long as its disk does, or fail: it may be what broke."""
    engine, model = slow_engine()
    heard = threading.Event()

    def close() -> None:
        assert heard.wait(10)

    monkeypatch.setattr(engine._parts.store, "close", close)
    task = asyncio.create_task(collect(engine, greedy_request("a", [1], 200)))
    await until(lambda: engine.stats().generated_tokens > 1)
    model.die = True
    last = (await asyncio.wait_for(task, 5))[-1]
    assert (last.finish_reason, engine.closed_reason) == ("error", last.error)
    heard.set()
    await asyncio.to_thread(engine.close)


async def test_closing_ends_running_streams_and_the_thread():
    engine, _ = slow_engine()
    task = asyncio.create_task(collect(engine, greedy_request("a", [1], 200)))
    await until(lambda: engine.stats().generated_tokens > 2)
    await asyncio.to_thread(engine.close)
    last = (await task)[-1]
    assert (last.finish_reason, last.error) == ("abort", engine.closed_reason)
    assert not [t for t in threading.enumerate() if t.name.startswith("kt-engine")]
    with pytest.raises(EngineClosedError, match="was closed"):
        await collect(engine, greedy_request("b", [1]))


async def test_only_one_thread_steps():
    with fake_engine() as engine:
        await collect(engine, greedy_request("a", [1], 2))
        with pytest.raises(RuntimeError, match=r"\[engine.step\] one thread"):
            engine.step()


class CountedProbe:
    """Stands for exec.probe.Probe: three steps, each of which waits to be let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.is_done = False
        self.may_go = threading.Semaphore(0)

    def step(self) -> None:
        self.begun += 1
        self.may_go.acquire(timeout=10)
        self.is_done = self.begun == 3


async def test_the_probe_goes_on_while_nothing_runs_and_holds_a_request_up_by_one_step(monkeypatch):
    probe = CountedProbe()
    with fake_engine(probe=probe) as engine:
        await collect(engine, greedy_request("a", [1], 3))
        monkeypatch.setattr("kt_runtime.engine._PROBE_AFTER_S", 0.01)  # not before, as below
        await until(lambda: probe.begun == 1)
        request = asyncio.create_task(collect(engine, greedy_request("b", [2], 3)))
        await until(lambda: engine.stats().num_waiting == 1)
        probe.may_go.release()
        assert tokens_of(await request, "b") == greedy_continuation([2], 3)
        probe.may_go.release(2)
        await until(lambda: probe.is_done)
        assert len(await collect(engine, greedy_request("c", [3], 3))) == 3
    assert probe.begun == 3


async def test_requests_that_follow_each_other_meet_no_probe():
    probe = CountedProbe()
    with fake_engine(probe=probe) as engine:
        for i in range(5):
            await collect(engine, greedy_request(f"{i}", [i], 3))
    assert probe.begun == 0


async def test_closing_does_not_wait_for_the_rest_of_the_probe(monkeypatch):
    probe = CountedProbe()
    engine = fake_engine(probe=probe)
    await collect(engine, greedy_request("a", [1], 3))
    # Not before: the engine's thread may come to its first wait before the request does.
    monkeypatch.setattr("kt_runtime.engine._PROBE_AFTER_S", 0.0)
    await until(lambda: probe.begun == 1)
    probe.may_go.release()
    await until(lambda: probe.begun == 2)
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    await until(lambda: engine.closed_reason is not None)
    probe.may_go.release()
    await closing
    assert probe.begun == 2


async def test_an_idle_thread_sleeps():
    with fake_engine() as engine:
        await collect(engine, greedy_request("a", [1], 2))
        thread = next(t for t in threading.enumerate() if t.name == "kt-engine")
        before = time.thread_time_ns(), time.process_time()
        await asyncio.sleep(0.2)
        assert thread.is_alive()
        assert time.process_time() - before[1] < 0.1


def test_requests_of_an_event_loop_that_ended_are_aborted():
    engine, model = slow_engine()

    async def leave() -> None:
        stream = engine.generate(greedy_request("left", [1], 200))
        await anext(stream)
        model.may_run.clear()
        streams.append(stream)  # neither closed nor read on

    streams: list = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()
    model.may_run.set()
    deadline = time.monotonic() + 10
    while engine.has_work and time.monotonic() < deadline:
        time.sleep(0.002)
    assert engine.stats().finished == {"abort": 1}
    engine.close()


ENDS_WHILE_GENERATING = """
import asyncio, sys, threading, time
from kt_runtime import Engine, EngineConfig, Request, SamplingParams

engine = Engine.from_pretrained(sys.argv[1], EngineConfig(num_pages=64))
started = threading.Event()

async def generate():
    sampling = SamplingParams(max_tokens=400, ignore_eos=True)
    async for _ in engine.generate(Request("a", (1, 2, 3), sampling)):
        started.set()

threading.Thread(target=lambda: asyncio.run(generate()), daemon=True).start()
started.wait(60)
"""


def test_a_program_may_end_while_its_engine_computes():
    """A thread that came back from a kernel after the interpreter has gone would abort it."""
    checkpoint = str(tiny_checkpoint("mixtral")[1])
    command = [sys.executable, "-c", ENDS_WHILE_GENERATING, checkpoint]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
