# SPDX-License-Identifier: Apache-2.0
"""The probe: what it measures and when, and that nothing of it stays."""

from __future__ import annotations

import pytest
import torch

from kt_runtime.config import EngineConfig
from kt_runtime.engine import Engine
from kt_runtime.exec.probe import Probe
from kt_runtime.exec.runner import Runner
from kt_runtime.scheduler import StepWork

from .fake_model import FakeCausalLM, fake_engine
from .tiny_models import tiny_checkpoint


class CountingRunner:
    """Stands for a Runner on a clock of its own."""

    def __init__(self, row_s: float, step_s: float) -> None:
        self.now = 0.0
        self.batches: list = []
        self._row_s, self._step_s = row_s, step_s

    def rehearse(self, batch) -> None:
        first = not any(b is batch for b in self.batches)
        self.batches.append(batch)
        self.now += self._step_s + self._row_s * len(batch.input_ids) + (10.0 if first else 0.0)


class Learned(list):
    """Stands for a StepTimeModel: (work, seconds) as probed."""

    def probe(self, work, seconds) -> None:
        self.append((work, seconds))


def new_probe(runner, max_model_len: int = 8192, **settings) -> tuple[Probe, Learned]:
    learned = Learned()
    config = EngineConfig(num_pages=1000, **settings)
    shape = FakeCausalLM.shape
    return Probe(learned, runner, shape, config, max_model_len, lambda: runner.now), learned


def probed(runner, max_model_len: int = 8192, **settings) -> Learned:
    """After all of it."""
    probe, learned = new_probe(runner, max_model_len, **settings)
    probe.start()
    for _ in range(100):
        if probe.is_done:
            return learned
        probe.step()
    raise AssertionError("the probe does not end")


def test_decodes_then_chunks_of_growing_size_then_a_late_one():
    runner = CountingRunner(row_s=1e-4, step_s=1e-3)
    seconds = dict(probed(runner))
    sizes = [StepWork(1, 0, 1), StepWork(4, 0, 4)]
    sizes += [StepWork().with_chunk(0, n) for n in (16, 64, 256, 512)]
    assert list(seconds) == [*sizes, StepWork().with_chunk(1024 - 256, 256)]
    for work, took in seconds.items():  # the first run of each is not counted
        assert took == pytest.approx(1e-3 + 1e-4 * work.num_rows)


def test_a_decode_is_the_fastest_of_its_runs():
    runner = CountingRunner(row_s=1e-4, step_s=1e-3)
    quiet = runner.rehearse

    def disturbed(batch) -> None:
        quiet(batch)
        runner.now += 0.0 if len(runner.batches) == 3 else 0.5

    runner.rehearse = disturbed
    probe, learned = new_probe(runner)
    probe.start()
    assert learned == [(StepWork(1, 0, 1), pytest.approx(1.1e-3))]


def test_only_a_lone_decode_is_measured_at_the_start_and_then_one_step_at_a_time():
    runner = CountingRunner(row_s=1e-4, step_s=1e-3)
    probe, learned = new_probe(runner)
    probe.start()
    assert [work for work, _ in learned] == [StepWork(1, 0, 1)]
    assert {len(batch.input_ids) for batch in runner.batches} == {1}
    while not probe.is_done:
        num_steps = len(runner.batches)
        probe.step()
        assert len(runner.batches) - num_steps == (not probe.is_done)


@pytest.mark.parametrize("row_s", [0.01, 0.1])
def test_a_slow_machine_measures_fewer_chunks(row_s):
    works = [work for work, _ in probed(CountingRunner(row_s, step_s=0.0))]
    assert [w.num_prefill_tokens for w in works] == [0, 0, 16, 64, 16]


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"max_model_len": 100}, [0, 0, 16, 64, 100, 64]),
        ({"max_model_len": 9}, [0, 0, 9]),
        ({"max_num_seqs": 3, "max_batch_tokens": 40}, [0, 16, 40, 16]),
    ],
)
def test_probes_fit_the_settings(settings, sizes):
    limit = settings.pop("max_model_len", 8192)
    runner = CountingRunner(row_s=1e-6, step_s=1e-6)
    assert [w.num_prefill_tokens for w, _ in probed(runner, limit, **settings)] == sizes
    for batch in runner.batches:
        assert int(batch.positions.max()) < limit
        assert int(batch.seq_lens.max()) <= limit
        assert set(batch.slot_mapping.tolist()) == {-1}
        assert len(set(batch.input_ids.tolist())) == min(len(batch.input_ids), 89)


def test_a_fake_model_takes_the_batches():
    engine = fake_engine()
    parts, learned = engine._parts, Learned()
    probe = Probe(learned, parts.runner, parts.shape, engine.config, engine.max_model_len)
    probe.start()
    while not probe.is_done:
        probe.step()
    assert [work.num_rows for work, _ in learned] == [1, 4, 4, 16, 32, 16]
    assert engine.stats().steps == engine.stats().graph_steps == 0


def test_a_model_that_fails_ends_the_probe_and_nothing_else(caplog):
    class FailingRunner(CountingRunner):
        def rehearse(self, batch) -> None:
            if len(batch.input_ids) > 16:
                raise MemoryError("none left")
            super().rehearse(batch)

    learned = probed(FailingRunner(row_s=1e-6, step_s=1e-6))
    assert [w.num_prefill_tokens for w, _ in learned] == [0, 0, 16]
    assert "the probe of step times failed" in caplog.text


@pytest.mark.parametrize("backend", ["kt", "torch"])
def test_nothing_of_the_probe_stays(monkeypatch, backend):
    runners: list[Runner] = []
    original = Runner._forward

    def forward(self, *args):
        runners.append(self)
        logits = original(self, *args)
        assert bool(torch.isfinite(logits).all())
        return logits

    monkeypatch.setattr(Runner, "_forward", forward)
    config = EngineConfig(num_pages=40, num_threads=1, backend=backend)
    with Engine.from_pretrained(tiny_checkpoint("qwen3_moe")[1], config) as engine:
        assert len(runners) == 4  # a lone decode
        while not engine._probe.is_done:
            engine._probe.step()
        stats = engine.stats()
    assert len(runners) > 10
    for layer in runners[0]._kv:
        assert not layer.k.any()
        assert not layer.v.any()
    assert (stats.steps, stats.graph_steps, stats.pages_free) == (0, 0, 40)
    assert stats.max_itl_s >= 0.1
