# SPDX-License-Identifier: Apache-2.0
"""ops.kt_ops against ops.torch_ops, op by op; recording; what packing keeps and what it lets go."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from torch import Tensor

from kt_kernel import ThreadPool
from kt_runtime.checkpoint.formats import BLOCKS
from kt_runtime.ops.kt_ops import KtOps
from kt_runtime.ops.packing import PROJECTIONS
from kt_runtime.ops.recording import Recording
from kt_runtime.ops.torch_ops import TorchOps
from kt_runtime.protocols import ModelShape, Projection, QuantTensor, Router

from .paged_batch import PagedSequences, Rope

FORMATS = ["float32", "bf16", "int8", "int4"]
MAX_TOKENS = 40
EPSILON = 2.0**-24  # half an ulp of float32 at 1


@pytest.fixture(scope="module")
def pool() -> ThreadPool:
    return ThreadPool(2)


def make_ops(pool: ThreadPool, group_size: int = 32) -> tuple[KtOps, TorchOps]:
    return KtOps(pool, MAX_TOKENS, group_size), TorchOps(group_size=group_size)


@pytest.fixture
def both(pool: ThreadPool) -> tuple[KtOps, TorchOps]:
    return make_ops(pool)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same_products(
    got: Tensor, want: Tensor, x: Tensor, weight: Tensor, weight_format: str
) -> None:
    """Two right evaluations of x @ weight.T (bias included) differ by K float32 roundings in each.

    Where activations become integers, one in some thousand stands on the edge between two and may
    round either way: a few rows may differ by one step of one activation.
    """
    difference = (got - want).abs()
    floats = 2 * (x.shape[-1] + 1) * EPSILON * (x.abs() @ weight.abs().T + 1)
    close = (difference <= floats).all(-1)
    if weight_format in ("int8", "int4"):
        step = x.abs().amax(-1, keepdim=True) / 127 * weight.abs().amax(-1)
        assert (difference <= floats + step).all()
        assert close.float().mean() > 0.95
    else:
        assert close.all()


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 64, 128), (5, 7, 40), (33, 50, 200)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear(
    pool: ThreadPool,
    weight_format: str,
    group_size: int,
    rows: int,
    n: int,
    k: int,
    has_bias: bool,
) -> None:
    kt, oracle = make_ops(pool, group_size)
    x, weight = randn(rows, k), randn(n, k, seed=1)
    bias = randn(n, seed=2) if has_bias else None
    got = kt.linear(x, kt.pack_linear(weight, weight_format, bias))
    want = oracle.linear(x, oracle.pack_linear(weight, weight_format, bias))
    assert_same_products(got, want, x, weight, weight_format)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_weights_pack_from_every_stored_dtype(
    both: tuple[KtOps, TorchOps], weight_format: str, stored: torch.dtype
) -> None:
    kt, oracle = both
    x, weight = randn(3, 64), randn(8, 64, seed=1).to(stored)
    got = kt.linear(x, kt.pack_linear(weight, weight_format))
    want = oracle.linear(x, oracle.pack_linear(weight, weight_format))
    assert_same_products(got, want, x, weight.float(), weight_format)


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize(("hidden", "intermediate"), [(64, 32), (96, 40)])
def test_experts(
    both: tuple[KtOps, TorchOps], weight_format: str, hidden: int, intermediate: int
) -> None:
    weights = {
        "gate": randn(6, intermediate, hidden) * hidden**-0.5,
        "up": randn(6, intermediate, hidden, seed=1) * hidden**-0.5,
        "down": randn(6, hidden, intermediate, seed=2) * intermediate**-0.5,
    }
    x, topk_weights = randn(9, hidden, seed=3), randn(9, 3, seed=4)
    generator = torch.Generator().manual_seed(5)
    topk_ids = torch.randint(-1, 6, (9, 3), generator=generator, dtype=torch.int32)
    formats = dict.fromkeys(PROJECTIONS, weight_format)
    got, want = (
        ops.experts(
            x,
            ops.pack_experts(6, hidden, intermediate, 3, formats, lambda e, p: weights[p][e]),
            topk_ids,
            topk_weights,
            randn(9, hidden, seed=6),
        )
        for ops in both
    )
    # Unit-sized products: equal but for float32 roundings, except in a token of whose activations
    # one stands on the edge between two integers or bf16 values and moves the result by a step.
    difference = (got - want).abs().amax(-1)
    assert (difference <= 1e-5).float().mean() > 0.8
    edge = 0.0 if weight_format == "float32" else 2 / 127
    assert difference.max() <= 1e-5 + edge * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_embedding_is_exact(both: tuple[KtOps, TorchOps], dtype: torch.dtype) -> None:
    table, ids = randn(11, 24).to(dtype), torch.tensor([3, 0, 10, 3], dtype=torch.int32)
    got, want = (ops.embedding(ids, ops.pack_embedding(table)) for ops in both)
    assert torch.equal(got, want)
    assert torch.equal(got, table[ids.long()].float())


@pytest.mark.parametrize("format", BLOCKS)
def test_embedding_of_blocks_is_their_float32_values(
    both: tuple[KtOps, TorchOps], format: str
) -> None:
    kind = GGMLQuantizationType[format.upper()]
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(1).integers(0, 256, (11, 2 * block_bytes), np.uint8)
    with np.errstate(invalid="ignore"):  # scales of any bits
        values = quants.dequantize(blocks, kind)
    table = QuantTensor(format, blocks, (11, 2 * block_size))
    ids = torch.tensor([3, 0, 10, 3], dtype=torch.int32)
    for ops in both:
        got = ops.embedding(ids, ops.pack_embedding(table))
        np.testing.assert_array_equal(got, values[ids])
    assert both[0].embedding(ids[:0], table).shape == (0, 2 * block_size)
    with pytest.raises(ValueError, match=r"^\[embedding\] ids must lie in \[0, 11\); got 11$"):
        both[0].embedding(torch.tensor([11], dtype=torch.int32), table)


def test_an_embedding_table_stays_where_it_is(both: tuple[KtOps, TorchOps]) -> None:
    table = randn(5, 8)
    assert both[0].pack_embedding(table).data_ptr() == table.data_ptr()
    unaligned = torch.frombuffer(bytearray(range(33)), dtype=torch.float16, offset=1)
    copied = both[0].pack_embedding(unaligned.view(2, 8))
    got = both[0].embedding(torch.tensor([1], dtype=torch.int32), copied)
    assert torch.equal(got, copied[1:].float())


@pytest.mark.parametrize("shape", [(5, 96), (5, 3, 24)])
def test_rms_norm(both: tuple[KtOps, TorchOps], shape: tuple[int, ...]) -> None:
    x, weight = randn(*shape), randn(shape[-1], seed=1)
    got, want = (ops.rms_norm(x, ops.pack_vector(weight), 1e-5) for ops in both)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(32, 32), (24, 12)])
def test_rope_write_kv_and_attention(
    both: tuple[KtOps, TorchOps], dtype: torch.dtype, head_dim: int, rotary_dim: int
) -> None:
    """A prefill of 9 and one of 4 tokens, then 1 more of the first and 3 of the other."""
    shape = ModelShape(1, 1, 2, head_dim, 64)
    angles = randn(64, rotary_dim // 2, seed=7) * 10
    rope = Rope(angles.cos(), angles.sin())
    outputs = []
    for ops in both:
        pages = PagedSequences(shape, 2, 16, page_size=4, dtype=dtype)
        out = []
        for step, counts in enumerate([(9, 4), (1, 3)]):
            batch = pages.batch([0, 1], [[0] * count for count in counts])
            q, k, v = (
                randn(sum(counts), heads, head_dim, seed=10 * step + i)
                for i, heads in enumerate((6, 2, 2))
            )
            ops.rope_write_kv(q, k, v, rope, batch, pages.kv[0])
            out += [q, ops.attention(q, pages.kv[0], batch, head_dim**-0.5)]
        written = ~pages.kv[0].k.isnan()
        assert int(written.sum()) == 17 * 2 * head_dim
        outputs.append([*out, pages.kv[0].k[written].float(), pages.kv[0].v[written].float()])
    for got, want in zip(*outputs, strict=True):
        # A rotated key on the edge between two bf16 values may round either way.
        tolerance = 1e-5 if dtype == torch.float32 else 2.0**-7
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "router",
    [
        Router(top_k=3, score="softmax", normalize=False),
        Router(top_k=2, score="softmax"),
        Router(top_k=4, score="sigmoid", bias=randn(12, seed=9), scale=2.5),
        Router(4, "sigmoid", randn(12, seed=9), num_groups=4, topk_groups=2, normalize=False),
        Router(12, "softmax"),
    ],
    ids=["plain", "normalised", "biased", "grouped", "all"],
)
def test_route(both: tuple[KtOps, TorchOps], router: Router) -> None:
    logits = torch.cat([randn(20, 12), torch.zeros(1, 12)])  # the last row: ties everywhere
    (ids, weights), (want_ids, want_weights) = (ops.route(logits, router) for ops in both)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(weights, want_weights, rtol=1e-5, atol=1e-7)


def test_swiglu(both: tuple[KtOps, TorchOps]) -> None:
    x, y = randn(5, 40) * 5, randn(5, 40, seed=1)
    got, want = (ops.swiglu(x, y) for ops in both)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_residual_and_several_weights_change_no_result(both: tuple[KtOps, TorchOps]) -> None:
    x, residual = randn(5, 64), randn(5, 24, seed=1)
    for ops in both:
        weights = [
            ops.pack_linear(randn(n, 64, seed=n), weight_format)
            for n, weight_format in ((24, "int8"), (8, "int4"), (3, "float32"))
        ]
        alone = [ops.linear(x, weight) for weight in weights]
        for one, together in zip(alone, ops.linears(x, weights), strict=True):
            assert torch.equal(one, together)
        assert torch.equal(ops.linear(x, weights[0], residual.clone()), residual + alone[0])


def test_take_rows_gives_the_rows_in_the_order_asked(both: tuple[KtOps, TorchOps]) -> None:
    x, rows = randn(5, 3), torch.tensor([4, 0, 4], dtype=torch.int32)
    for ops in both:
        assert torch.equal(ops.take_rows(x, rows), x[[4, 0, 4]])


def test_compute_leaves_its_inputs_alone(both: tuple[KtOps, TorchOps]) -> None:
    x, y = randn(4, 32), randn(4, 32, seed=1)
    before = x.clone(), y.clone()
    for ops in both:
        norm = ops.pack_vector(randn(32, seed=2))
        ops.linear(x, ops.pack_linear(randn(8, 32), "int8"))
        ops.rms_norm(x, norm, 1e-5)
        ops.swiglu(x, y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_packed_weights_outlive_the_source(both: tuple[KtOps, TorchOps]) -> None:
    kt, _ = both
    source, x = randn(8, 32), randn(2, 32, seed=1)
    bias, gain = randn(8, seed=2), randn(32, seed=3)

    def results() -> list[Tensor]:
        return [kt.linear(x, linear), kt.rms_norm(x, norm, 1e-5)]

    linear = kt.pack_linear(source, "float32", bias)
    norm = kt.pack_vector(gain)
    before = results()
    for tensor in (source, bias, gain):
        tensor.fill_(torch.nan)
    for got, want in zip(results(), before, strict=True):
        assert torch.equal(got, want)


def test_packing_experts_holds_one_matrix_per_thread(pool: ThreadPool) -> None:
    alive, most = [0], [0]

    def load(expert: int, projection: Projection) -> Tensor:
        tensor = randn(16, 32) if projection != "down" else randn(32, 16)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(tensor, lambda: alive.__setitem__(0, alive[0] - 1))
        return tensor

    formats = dict.fromkeys(PROJECTIONS, "int4")
    KtOps(pool, MAX_TOKENS).pack_experts(16, 32, 16, 2, formats, load)
    gc.collect()
    assert alive[0] == 0
    # Two per thread: what was just packed dies when the next one has been read.
    assert most[0] <= 2 * pool.num_threads


def test_recorded_ops_read_their_inputs_anew_at_each_replay(
    both: tuple[KtOps, TorchOps],
) -> None:
    kt, _ = both
    weight, x, y = kt.pack_linear(randn(32, 32), "int8"), randn(3, 32), randn(3, 32, seed=1)
    recording = Recording(kt.pool)
    recorder = kt.recorder(recording)

    def compute(ops: KtOps) -> Tensor:
        return ops.swiglu(ops.swiglu(ops.linear(x, weight), y), x)

    out = compute(recorder)
    assert len(recording.graph) == 3
    for seed in (0, 5):
        x.copy_(randn(3, 32, seed=seed))
        recording.replay()
        assert torch.equal(out, compute(kt))


def test_recorded_outputs_live_with_the_graph(both: tuple[KtOps, TorchOps]) -> None:
    """Buffers between ops are held by the graph alone; reusing their memory would be seen."""
    kt, _ = both
    x = randn(64, 64)
    recording = Recording(kt.pool)
    recorder = kt.recorder(recording)
    double = kt.pack_linear(2 * torch.eye(64), "float32")
    out = x
    for _ in range(4):
        out = recorder.linear(out, double)
    gc.collect()
    litter = [torch.full((64, 64), torch.nan) for _ in range(16)]
    recording.replay()
    torch.testing.assert_close(out, 16 * x)
    assert all(bool(t.isnan().all()) for t in litter)


@pytest.mark.parametrize(
    "call",
    [
        lambda ops: ops.linear(randn(2, 31), ops.pack_linear(randn(8, 32), "int8")),
        lambda ops: ops.swiglu(randn(2, 3), randn(3, 3)),
        lambda ops: ops.rms_norm(randn(2, 4).double(), ops.pack_vector(randn(4)), 1e-5),
        lambda ops: ops.embedding(torch.tensor([1]), ops.pack_embedding(randn(4, 4))),
        lambda ops: ops.swiglu(randn(4, 2).T, randn(2, 4)),
    ],
    ids=["width", "rows", "float64", "int64 ids", "strides"],
)
def test_wrong_arrays_are_refused_by_name(
    both: tuple[KtOps, TorchOps], call: Callable[[KtOps], Tensor]
) -> None:
    with pytest.raises(ValueError, match=r"^\[\w+\] .*; got "):
        call(both[0])
