# SPDX-License-Identifier: Apache-2.0
"""Recordings with and without ops that have no kernel, and the buffers they share."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from kt_kernel import ThreadPool
from kt_runtime.models.blocks import DenseMlp
from kt_runtime.ops.kt_ops import KtOps
from kt_runtime.ops.recording import Recording, RowBuffers

from .fake_model import drain, greedy_request, tokens_of
from .test_engine_models import engine_of, ids_of, logits_of


@pytest.fixture(scope="module")
def ops() -> KtOps:
    return KtOps(ThreadPool(2), max_tokens=8)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_calls_run_between_graphs_on_live_rows_only(ops):
    x, y = randn(4, 32), randn(4, 32, seed=1)
    num_rows = torch.tensor([3], dtype=torch.int32)
    seen: list[int] = []

    def cubed(a: Tensor, b: Tensor) -> Tensor:
        assert bool(torch.isfinite(a).all())
        seen.append(len(a))
        return a**3 + b

    def forward(ops: KtOps) -> Tensor:
        h = ops.eager("cubed", cubed, ops.swiglu(x, y), y)
        return ops.swiglu(ops.eager("cubed", cubed, ops.swiglu(h, y), x), h)

    recording = Recording(ops.pool, num_rows)
    out = forward(ops.recorder(recording))
    assert recording.eager_ops == ["cubed", "cubed"]
    for live in (1, 4, 2):
        num_rows[0] = live
        x.copy_(randn(4, 32, seed=live))
        x[live:] = torch.nan
        seen.clear()
        recording.replay()
        assert seen == [live, live]
        x[live:] = 1.0
        assert torch.equal(out[:live], forward(ops)[:live])


def test_without_calls_a_replay_is_one_call(ops):
    recording = Recording(ops.pool)
    x = randn(3, 32)
    recorder = ops.recorder(recording)
    for _ in range(20):
        x = recorder.swiglu(x, x)
    calls: list[str] = []
    sys.setprofile(lambda frame, event, arg: calls.append(event) if event == "call" else None)
    try:
        recording.replay()
    finally:
        sys.setprofile(None)
    assert calls == ["call", "call"]  # Recording.replay and Graph.replay
    assert not recording.eager_ops


def test_a_call_must_return_a_row_for_each_row(ops):
    recorder = ops.recorder(Recording(ops.pool))
    with pytest.raises(ValueError, match=r"\[mean\] .* a row for each of 3 rows; got 1"):
        recorder.eager("mean", lambda x: x.mean(0, keepdim=True), randn(3, 32))


def test_recordings_of_all_sizes_share_their_buffers(ops):
    buffers = RowBuffers(8)
    weight = ops.pack_linear(randn(16, 32), "float32")
    results = []
    for num_rows in (2, 8, 1):
        recorder = ops.recorder(Recording(ops.pool, buffers=buffers))
        x = randn(num_rows, 32)
        h = recorder.swiglu(x, x)
        results.append(
            (h, recorder.linear(recorder.rms_norm(h, ops.pack_vector(x[0]), 1e-5), weight))
        )
    for each in zip(*results, strict=True):
        assert len({tensor.data_ptr() for tensor in each}) == 1
        assert [len(tensor) for tensor in each] == [2, 8, 1]
    assert results[0][0].data_ptr() != results[0][1].data_ptr()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 5), torch.float32), ((2, 4), torch.int32), ((9, 4), torch.float32)],
)
def test_what_differs_between_recordings_gets_its_own_buffer(shape, dtype):
    buffers = RowBuffers(8)
    shared = buffers.take(0, (2, 4), torch.float32)
    other = buffers.take(0, shape, dtype)
    assert (tuple(other.shape), other.dtype) == (shape, dtype)
    assert other.data_ptr() != shared.data_ptr()
    assert buffers.take(0, (8, 4), torch.float32).data_ptr() == shared.data_ptr()


def relu_squared(gate: Tensor, up: Tensor) -> Tensor:
    return torch.relu(gate).square() * up


@pytest.fixture
def mlp_without_kernel(monkeypatch):
    """The dense layers gate with a function that the kernels do not have."""

    def forward(self, ops, x, residual):
        gate, up = ops.linears(x, (self.gate_proj, self.up_proj))
        gated = ops.eager("relu_squared", relu_squared, gate, up)
        return ops.linear(gated, self.down_proj, residual)

    monkeypatch.setattr(DenseMlp, "forward", forward)


@pytest.mark.usefixtures("mlp_without_kernel")
def test_a_model_with_an_op_without_a_kernel_decodes_on_graphs(caplog):
    ids = ids_of("llama", 40)
    with caplog.at_level(logging.WARNING):
        engine = engine_of("llama")
        assert caplog.messages == [
            "no kernel computes relu_squared: a decode step is replayed in 4 parts"
        ]
        one_shot = logits_of(engine, ids)
        decoded = logits_of(engine, ids, chunk_size=1)
    assert len(caplog.messages) == 1
    np.testing.assert_array_equal(decoded, one_shot)
    assert engine.stats().graph_steps == 40
    assert engine.stats().eager_ops == {"relu_squared": 3}
    through_torch = logits_of(engine_of("llama", backend="torch"), ids)
    np.testing.assert_allclose(one_shot, through_torch, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("mlp_without_kernel")
def test_batches_of_all_sizes_say_what_each_says_alone():
    engine, alone = engine_of("llama"), engine_of("llama", cpu_graph=False)
    prompts = {f"{i}": ids_of("llama", 5 + i, seed=i) for i in range(5)}
    for i, (request_id, prompt) in enumerate(prompts.items()):
        engine.add(greedy_request(request_id, prompt, 6 + 2 * i))
    events = drain(engine)
    assert engine.stats().graph_steps == engine.stats().steps - 1
    for i, (request_id, prompt) in enumerate(prompts.items()):
        alone.add(greedy_request(request_id, prompt, 6 + 2 * i))
        assert tokens_of(drain(alone), request_id) == tokens_of(events, request_id)


@pytest.mark.usefixtures("mlp_without_kernel")
def test_an_op_without_a_kernel_is_found_by_its_name_where_numbers_break(monkeypatch):
    monkeypatch.setattr(f"{__name__}.relu_squared", lambda gate, up: gate * torch.nan)
    engine = engine_of("llama", debug_numerics=True)
    engine.add(greedy_request("a", [1, 2, 3], 3))
    (event,) = drain(engine)
    assert "came from relu_squared in layer 0" in event.error
