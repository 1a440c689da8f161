# SPDX-License-Identifier: Apache-2.0
"""ops.torch_ops, the oracle, against plain formulas and PyTorch's own attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kt_runtime.ops.torch_ops import TorchOps, fake_quantize
from kt_runtime.protocols import KVLayer, ModelShape, Router

from .paged_batch import PagedSequences, Rope

SHAPE = ModelShape(
    vocab_size=1, num_layers=1, num_kv_heads=2, head_dim=8, max_position_embeddings=64
)


@pytest.fixture
def ops() -> TorchOps:
    return TorchOps()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bf16(x: float) -> float:
    return float(torch.tensor(x).bfloat16())


@pytest.mark.parametrize(("bits", "low", "high"), [(8, -127, 127), (4, -8, 7)])
@pytest.mark.parametrize("columns", [32, 64, 40])
def test_fake_quantize_follows_the_rule_group_by_group(
    bits: int, low: int, high: int, columns: int
) -> None:
    weight = randn(3, columns).double().numpy()
    got = fake_quantize(torch.tensor(weight), bits, 32, torch.bfloat16).double().numpy()
    for row in range(3):
        for begin in range(0, columns, 32):
            group = weight[row, begin : begin + 32].astype(np.float32)
            farthest = group[np.abs(group).argmax()]
            if bits == 8:
                farthest = -abs(farthest)
            scale = np.float32(bf16(float(farthest / np.float32(low))))
            integers = np.clip(np.round(group / scale), low, high)  # numpy: half to even
            np.testing.assert_array_equal(got[row, begin : begin + 32], integers * scale)


def test_fake_quantize_keeps_zeros_and_half_goes_to_even() -> None:
    assert not fake_quantize(torch.zeros(1, 32), 4, 32, torch.bfloat16).any()
    for farthest in (8.0, -8.0):  # scale -1 and 1
        values = torch.tensor([[farthest, 0.5, 1.5, -2.5, *[0.0] * 28]])
        got = fake_quantize(values, 4, 32, torch.bfloat16)[0, :4].tolist()
        assert got == [farthest, 0.0, 2.0, -2.0]
    assert fake_quantize(torch.tensor([[8.0, -8.0]]), 4, 32, torch.bfloat16).tolist() == [[8, -7]]


@pytest.mark.parametrize("weight_format", ["float32", "bf16", "int8", "int4"])
def test_linear_rounds_weights_and_activations_as_its_format_says(
    ops: TorchOps, weight_format: str
) -> None:
    x, weight, bias = randn(5, 40), randn(7, 40, seed=1), randn(7, seed=2)
    got = ops.linear(x, ops.pack_linear(weight, weight_format, bias))
    if weight_format == "bf16":
        x, weight = x.bfloat16().float(), weight.bfloat16().float()
    elif weight_format != "float32":
        bits = {"int8": 8, "int4": 4}[weight_format]
        weight = fake_quantize(weight, bits, 32, torch.bfloat16)
        x = fake_quantize(x, 8, 32, torch.float32)
    torch.testing.assert_close(got, x @ weight.T + bias)


def test_packed_weights_outlive_the_source(ops: TorchOps) -> None:
    weight = randn(3, 4)
    packed, vector = ops.pack_linear(weight, "float32"), ops.pack_vector(weight[0])
    table = ops.pack_embedding(weight)
    kept = weight.clone()
    weight.zero_()
    assert torch.equal(packed.weight, kept)
    assert torch.equal(vector, kept[0])
    assert torch.equal(table, kept)


def test_rms_norm_works_on_rows_and_on_heads(ops: TorchOps) -> None:
    x, weight = randn(4, 3, 8), randn(8, seed=1)
    got = ops.rms_norm(x, weight, 1e-5)
    for t in range(4):
        for h in range(3):
            norm = float(x[t, h].square().mean() + 1e-5) ** 0.5
            torch.testing.assert_close(got[t, h], x[t, h] / norm * weight)


def test_rope_is_a_rotation_of_pairs_and_leaves_the_rest(ops: TorchOps) -> None:
    num_tokens, head_dim, rotary_dim = 3, 8, 6
    angles = randn(64, rotary_dim // 2, seed=3)
    pages = PagedSequences(SHAPE, 1, 16)
    batch = pages.batch([0], [[0] * num_tokens])
    q, k, v = randn(num_tokens, 4, 8), randn(num_tokens, 2, 8, seed=1), randn(3, 2, 8, seed=2)
    before = q.clone(), k.clone()
    ops.rope_write_kv(q, k, v, Rope(angles.cos(), angles.sin()), batch, pages.kv[0])

    def rotated(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.complex(x[..., : rotary_dim // 2], x[..., rotary_dim // 2 : rotary_dim])
        turned = pairs * torch.polar(torch.ones(3, 1, 3), angles[:num_tokens, None])
        return torch.cat([turned.real, turned.imag, x[..., rotary_dim:]], dim=-1)

    torch.testing.assert_close(q, rotated(before[0]))
    assert torch.equal(k, before[1])
    slots = batch.slot_mapping.long()
    torch.testing.assert_close(pages.kv[0].k.view(-1, 2, head_dim)[slots], rotated(k))
    assert torch.equal(pages.kv[0].v.view(-1, 2, head_dim)[slots], v)


def test_negative_slots_write_nothing(ops: TorchOps) -> None:
    pages = PagedSequences(SHAPE, 1, 16)
    batch = pages.batch([0], [[0, 0]])
    batch.slot_mapping[0] = -1
    rope = Rope(torch.ones(64, 4), torch.zeros(64, 4))
    ops.rope_write_kv(randn(2, 4, 8), randn(2, 2, 8), randn(2, 2, 8), rope, batch, pages.kv[0])
    written = ~pages.kv[0].k.isnan().all(-1).all(-1).flatten()
    assert written.nonzero().flatten().tolist() == [int(batch.slot_mapping[1])]


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_over_pages_is_causal_attention(
    ops: TorchOps, page_size: int, dtype: torch.dtype
) -> None:
    """Two sequences of 9 and 5 tokens, of which the last 4 and 1 are queried."""
    pages = PagedSequences(SHAPE, 2, 16, page_size, dtype)
    lengths, queried = (9, 5), (4, 1)
    keys = [randn(n, 2, 8, seed=n).to(dtype).float() for n in lengths]
    values = [randn(n, 2, 8, seed=n + 50).to(dtype).float() for n in lengths]
    for s in range(2):
        store(pages, s, keys[s], values[s])
        pages.seq_lens[s] = lengths[s] - queried[s]
    batch = pages.batch([0, 1], [[0] * n for n in queried])
    q = randn(sum(queried), 4, 8, seed=9)
    got = ops.attention(q, pages.kv[0], batch, 0.3)
    for s, begin in enumerate((0, 4)):
        count, length = queried[s], lengths[s]
        mask = torch.ones(count, length, dtype=torch.bool).tril(length - count)
        want = torch.nn.functional.scaled_dot_product_attention(
            q[begin : begin + count].transpose(0, 1),
            keys[s].transpose(0, 1),
            values[s].transpose(0, 1),
            attn_mask=mask,
            scale=0.3,
            enable_gqa=True,
        ).transpose(0, 1)
        torch.testing.assert_close(got[begin : begin + count], want)


def store(pages: PagedSequences, seq: int, keys: torch.Tensor, values: torch.Tensor) -> None:
    for position in range(len(keys)):
        page = int(pages.block_table[seq, position // pages.page_size])
        layer: KVLayer = pages.kv[0]
        layer.k[page, position % pages.page_size] = keys[position].to(layer.k.dtype)
        layer.v[page, position % pages.page_size] = values[position].to(layer.v.dtype)


def test_softmax_route_takes_the_likeliest_and_normalises(ops: TorchOps) -> None:
    logits = randn(6, 8)
    ids, weights = ops.route(logits, Router(top_k=3, score="softmax"))
    probabilities = logits.softmax(-1)
    for t in range(6):
        want = sorted(range(8), key=lambda e: -probabilities[t, e])[:3]
        assert ids[t].tolist() == want
        torch.testing.assert_close(
            weights[t], probabilities[t, want] / probabilities[t, want].sum()
        )
    assert ids.dtype == torch.int32


def test_route_breaks_ties_towards_the_lower_id(ops: TorchOps) -> None:
    ids, _ = ops.route(torch.zeros(2, 8), Router(top_k=3, score="softmax"))
    assert ids.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_sigmoid_route_chooses_by_bias_within_groups_and_weighs_without(ops: TorchOps) -> None:
    # Groups {0,1} {2,3} {4,5}. The bias lifts 2 and 3, so groups 1 and 2 win over the best single,
    # 0.
    logits = torch.tensor([[2.0, -9.0, 0.0, 0.1, 1.0, 0.9]])
    bias = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    router = Router(2, "sigmoid", bias, num_groups=3, topk_groups=2, normalize=False, scale=2.5)
    ids, weights = ops.route(logits, router)
    assert ids.tolist() == [[3, 2]]
    torch.testing.assert_close(weights, 2.5 * logits[:, [3, 2]].sigmoid())
    ids, _ = ops.route(logits, Router(4, "sigmoid", bias, num_groups=3, topk_groups=2))
    assert sorted(ids[0].tolist()) == [2, 3, 4, 5]


def test_experts_sum_what_was_chosen_and_skip_negative_ids(ops: TorchOps) -> None:
    gate, up = randn(4, 6, 10), randn(4, 6, 10, seed=1)
    down = randn(4, 10, 6, seed=2)
    stored = {"gate": gate, "up": up, "down": down}
    packed = ops.pack_experts(
        4, 10, 6, 2, dict.fromkeys(stored, "float32"), lambda e, p: stored[p][e]
    )
    x, weights = randn(3, 10, seed=3), randn(3, 2, seed=4)
    ids = torch.tensor([[0, 3], [-1, 2], [1, 1]], dtype=torch.int32)
    want = torch.zeros(3, 10)
    for t in range(3):
        for s in range(2):
            e = int(ids[t, s])
            if e >= 0:
                hidden = torch.nn.functional.silu(gate[e] @ x[t]) * (up[e] @ x[t])
                want[t] += weights[t, s] * (down[e] @ hidden)
    residual = randn(3, 10, seed=5)
    got = ops.experts(x, packed, ids, weights, residual)
    torch.testing.assert_close(got, residual + want)
