# SPDX-License-Identifier: Apache-2.0
"""Storage of packed experts: filling it, checking it, what it costs."""

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
import torch

from kt_kernel import Experts, MoE
from kt_kernel.formats import FORMATS

from . import reference
from .cases import FORMATS as CASE_FORMATS
from .cases import MOE
from .moe_layer import MoeLayer

GATE = np.ones((3, 8, 16), np.float32)
DOWN = np.ones((3, 16, 8), np.float32)


def test_complete_only_when_every_projection_of_every_expert_was_put(pool):
    experts = Experts.empty(2, 16, 8, gate="int4", up="int8", down="bf16")
    for e in range(2):
        for projection, weight in (("gate", GATE[e]), ("up", GATE[e]), ("down", DOWN[e])):
            assert not experts.complete
            with pytest.raises(ValueError, match=r"^\[moe\] .*"):
                MoE(experts, top_k=1, pool=pool)
            experts.put(e, projection, weight)
    assert experts.complete
    assert (experts.num_experts, experts.hidden_size, experts.intermediate_size) == (2, 16, 8)


@pytest.mark.parametrize("format", CASE_FORMATS)
def test_size_is_bits_per_weight(format):
    experts = Experts.empty(4, 256, 256, gate=format, up=format, down=format, group_size=64)
    expected = FORMATS[format].bits_per_weight(64) * 4 * 3 * 256 * 256 / 8
    assert experts.nbytes == expected


def test_put_piece_by_piece_from_threads_is_pack(pool, rng):
    layer = MoeLayer(MOE[1], rng)
    packed = layer.pack("int4", pool)
    pieces = Experts.empty(4, 83, 51, gate="int4", up="int4", down="int4")
    jobs = [(e, name) for e in range(4) for name in ("gate", "up", "down")]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda job: pieces.put(*job, getattr(layer, job[1])[job[0]]), jobs))
    assert np.array_equal(layer.forward(packed, pool), layer.forward(pieces, pool))


def weights_of(format, rng):
    """gate, up and down of three experts: floats, or any bytes as the blocks of a file."""
    if format == "int8":
        shapes = {"gate": (3, 40, 256), "up": (3, 40, 256), "down": (3, 256, 40)}
        return {p: rng.standard_normal(shape).astype(np.float32) for p, shape in shapes.items()}
    row_bytes = {"q4_0": 144, "q6_k": 210}[format]
    return {p: rng.integers(0, 256, (3, 256, row_bytes), np.uint8) for p in ("gate", "up", "down")}


@pytest.mark.parametrize("format", ["int8", "q4_0", "q6_k"])
def test_put_all_is_put_of_each(format, pool, rng):
    weights = weights_of(format, rng)
    sizes = (3, 256, weights["gate"].shape[1])
    whole, pieces = (Experts.empty(*sizes, gate=format, up=format, down=format) for _ in range(2))
    for projection, weight in weights.items():
        whole.put_all(projection, weight, pool=pool)
        for expert in range(3):
            pieces.put(expert, projection, weight[expert])
    assert whole.complete
    assert np.array_equal(whole._core.packed, pieces._core.packed)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (GATE[:2], r"weights must be those of 3 experts .*got \(2, 8, 16\)$"),
        (GATE[0], r"weights must be those of 3 experts .*got \(8, 16\)$"),
        (DOWN, r"weight must be .*\(24, 16\).*got float32 \(48, 8\)$"),
        (np.zeros((3, 8, 16), np.uint8), r"scales must be given for int4; got None$"),
        (DOWN.swapaxes(1, 2), r"gate must be C-contiguous; got \(3, 8, 16\) that is not$"),
        (torch.from_numpy(DOWN).mT, r"gate must be C-contiguous; got \(3, 8, 16\) that is not$"),
    ],
)
def test_put_all_refuses_other_weights(weights, message, pool):
    with pytest.raises(ValueError, match=r"^\[experts\.put_all\] " + message):
        Experts.empty(3, 16, 8).put_all("gate", weights, pool=pool)


def test_pack_copies_nothing_in_silence(pool):
    message = r"^\[experts\.pack\] up_proj must be C-contiguous; got \(3, 8, 16\) that is not$"
    with pytest.raises(ValueError, match=message):
        Experts.pack(GATE, DOWN.swapaxes(1, 2), DOWN, format="int4", pool=pool)


def test_experts_without_a_gate_take_neither_its_weight_nor_its_bias():
    experts = Experts.empty(3, 16, 8, gate=None, up="int8", down="int8")
    rule = r"projection must be up or down of experts without a gate; got gate$"
    with pytest.raises(ValueError, match=r"^\[experts.put\] " + rule):
        experts.put(0, "gate", GATE[0])
    with pytest.raises(ValueError, match=r"^\[experts.put_bias\] " + rule):
        experts.put_bias("gate", np.zeros((3, 8), np.float32))


@pytest.mark.parametrize("kind", ["uint16", "ml_dtypes", "torch"])
def test_bfloat16_weights_of_every_kind(kind, pool, rng):
    layer = MoeLayer(MOE[1], rng)
    bits = [reference.bf16_bits(weight) for weight in (layer.gate, layer.up, layer.down)]
    values = [reference.from_bf16(weight) for weight in bits]
    wrapped = {
        "uint16": lambda x: x,
        "ml_dtypes": lambda x: x.view(ml_dtypes.bfloat16),
        "torch": lambda x: torch.from_numpy(x.view(np.int16)).view(torch.bfloat16),
    }[kind]
    dtype = "bf16" if kind == "uint16" else None
    experts = Experts.pack(*map(wrapped, bits), format="int8", pool=pool, dtype=dtype)
    expected = Experts.pack(*values, format="int8", pool=pool)
    assert np.array_equal(layer.forward(experts, pool), layer.forward(expected, pool))


def test_projections_may_have_formats_of_their_own(pool, rng):
    layer = MoeLayer(MOE[2], rng)
    formats = {"gate": "float32", "up": "float32", "down": "int8"}
    experts = Experts.empty(8, 96, 64, **formats)
    for e in range(8):
        for name in formats:
            experts.put(e, name, getattr(layer, name)[e])
    out = layer.forward(experts, pool)
    # Gate and up are exact, so only down's rounding separates the two.
    exact = layer.expected("float32").value
    error = np.sqrt(np.mean((out - exact) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < 4 * FORMATS["int8"].weight_error


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.put(2, "gate", GATE[0]), r"^\[experts\.put\] expert .*got 2$"),
        (lambda e: e.put(-1, "gate", GATE[0]), r"^\[experts\.put\] expert .*got -1$"),
        (lambda e: e.put(0, "side", GATE[0]), r"^\[experts\.put\] projection .*got side$"),
        (lambda e: e.put(0, "down", GATE[0]), r"^\[experts\.put\] .*got float32 \(8, 16\)$"),
        (lambda e: e.put(0, "gate", GATE[0].astype(int)), r"^\[experts\.put\] weight .*got int64"),
        (lambda e: e.put(0, "gate", DOWN[0].T), r"^\[experts\.put\] .*strides"),
        (lambda e: Experts.empty(0, 16, 8), r"^\[experts\] .*got 0"),
        (lambda e: Experts.empty(2, 16, 8, up="fp3"), r"^\[experts\] .*fp3"),
        (lambda e: Experts.empty(2, 16, 8, group_size=31), r"^\[experts\] .*31"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Experts.empty(2, 16, 8))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((GATE, GATE[:2], DOWN), r"up_proj must be \(3, 8, 16\).*got \(2, 8, 16\)$"),
        ((GATE, GATE, GATE), r"down_proj must be \(3, 16, 8\).*got \(3, 8, 16\)$"),
        ((GATE[0], GATE, DOWN), r"gate_proj must be .*got \(8, 16\)$"),
    ],
)
def test_pack_refuses_arrays_that_do_not_fit_each_other(arrays, message, pool):
    with pytest.raises(ValueError, match=r"^\[experts\.pack\] " + message):
        Experts.pack(*arrays, pool=pool)
