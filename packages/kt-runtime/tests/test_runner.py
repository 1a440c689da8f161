# SPDX-License-Identifier: Apache-2.0
"""Which steps are replayed from graphs, and that replay equals eager execution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kt_runtime.core import Request
from kt_runtime.exec.cpu_graph import CpuGraphRunner
from kt_runtime.protocols import Batch

from .fake_model import FakeCausalLM, drain, fake_engine, greedy_request, tokens_of


def run_all(engine, num_requests: int, max_tokens: int) -> dict[str, list[int]]:
    for i in range(num_requests):
        engine.add(greedy_request(f"{i}", [i + 1, i + 2], max_tokens + i))
    events = drain(engine)
    return {f"{i}": tokens_of(events, f"{i}") for i in range(num_requests)}


def test_decode_steps_are_replayed_from_one_graph_per_bucket():
    model = FakeCausalLM()
    engine = fake_engine(model, max_num_seqs=12)
    run_all(engine, 10, 3)
    stats = engine.stats()
    # One prefill of 10 prompts, then 10 rows (bucket 12), and one row less with each that ends.
    assert stats.steps == 12
    assert stats.graph_steps == 11
    assert len(model.batches) == 1
    assert len(model.graphs) == 9  # buckets 12 (10 and 9 rows), 8, 7, …, 1
    assert sum(g.replays for g in model.graphs) == 11
    assert model.graphs[0].replays == 3


def test_graphs_change_nothing():
    graphs = run_all(fake_engine(max_num_seqs=12), 11, 9)
    eager = run_all(fake_engine(max_num_seqs=12, cpu_graph=False), 11, 9)
    assert graphs == eager


def test_the_graph_can_be_off():
    model = FakeCausalLM()
    engine = fake_engine(model, cpu_graph=False)
    run_all(engine, 2, 4)
    assert engine.stats().graph_steps == 0
    assert len(model.batches) == engine.stats().steps
    assert not model.graphs


def test_a_step_with_a_prefill_runs_eagerly():
    model = FakeCausalLM()
    engine = fake_engine(model)
    engine.add(greedy_request("a", [1], 9))
    engine.step()  # a one-token prompt looks like a decode
    assert engine.stats().graph_steps == 1
    engine.add(greedy_request("b", [1, 2], 9))
    engine.step()
    assert engine.stats().graph_steps == 1
    assert len(model.batches) == 1
    assert model.batches[0].seq_lens.tolist() == [2, 2]


def test_decode_shaped_rows_that_want_no_logits_are_dropped():
    """A chunk in the middle of a prompt and a decode in one replay: only the decode is sampled."""
    engine = fake_engine()
    engine.add(greedy_request("decodes", [3], 9))
    engine.add(greedy_request("prefills", [4, 5, 6, 7], 2, chunk_size=1))
    alone = fake_engine()
    alone.add(greedy_request("decodes", [3], 9))
    alone.add(greedy_request("prefills", [4, 5, 6, 7], 2))
    expected, events = drain(alone), drain(engine)
    for request_id in ("decodes", "prefills"):
        assert tokens_of(events, request_id) == tokens_of(expected, request_id)
    assert engine.stats().graph_steps == engine.stats().steps


def test_stale_entries_of_a_longer_sequence_are_not_read():
    engine = fake_engine()
    long, short = list(range(1, 60)), [5, 4, 3]
    engine.add(greedy_request("long", long, 3))
    drain(engine)
    engine.add(Request("short", tuple(short), return_logits=True, chunk_size=1))
    drain(engine)
    logits = engine.take_logits("short")
    fresh = fake_engine()
    fresh.add(Request("short", tuple(short), return_logits=True))
    drain(fresh)
    np.testing.assert_array_equal(logits, fresh.take_logits("short"))


def test_a_failing_replay_spoils_the_step_and_not_the_graph():
    model = FakeCausalLM()
    engine = fake_engine(model)
    engine.add(greedy_request("a", [1], 3))
    engine.add(greedy_request("b", [2], 3))
    model.fail_at = 2
    events = drain(engine)
    assert [e.finish_reason for e in events] == ["error", "error"]
    model.fail_at = None
    engine.add(greedy_request("a", [1], 3))
    engine.add(greedy_request("b", [2], 3))
    assert [e.finish_reason for e in drain(engine) if e.finish_reason] == ["length", "length"]
    assert len(model.graphs) == 1


@pytest.mark.parametrize("num_rows", [0, 9])
def test_batches_that_no_bucket_holds_are_refused(num_rows):
    model = FakeCausalLM()
    graphs = CpuGraphRunner(model, [], model.graphs_of, max_rows=8, max_pages=4)
    rows = torch.zeros(num_rows, dtype=torch.int32)
    batch = Batch(rows, rows, rows, rows[:, None], rows, rows, None)
    assert not graphs.can_run(num_rows)
    with pytest.raises(ValueError, match=rf"\[cpu_graph.run\] .* 1 to 8 rows; got {num_rows}"):
        graphs.run(batch)
