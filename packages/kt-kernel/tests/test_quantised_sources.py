# SPDX-License-Identifier: Apache-2.0
"""Packing: the same bytes on every target, quantised weights of every library, what is refused."""

import ml_dtypes
import numpy as np
import pytest
import torch

from kt_kernel import Experts, Linear, Stream, isa

from . import reference
from .cases import FORMAT_GROUPS, K_QUANTS, QUANTISED, ROUNDED, MoeCase
from .moe_layer import MoeLayer
from .sources import Source, quantised

DIAGONAL = np.eye(256, dtype=np.float32) * 127


def product(linear, pool, x=DIAGONAL):
    out = np.empty((len(x), linear.out_features), np.float32)
    Stream(pool).linear(x, linear, out)
    return out


def awkward(rng):
    """Ties between two integers, extremes, tiny and huge values, what is no number."""
    weight = rng.standard_normal((40, 256), np.float32)
    weight[1] = np.arange(256) % 15 - 7  # ties once halved
    weight[1, ::32] = 14
    weight[2] = 0
    weight[3] = -0.0
    weight[4] *= 1e-41
    weight[5] *= 1e30
    weight[6] *= 1e-7  # float16 scales are subnormal
    weight[7] = 3.25
    weight[8] = -3.25
    weight[9, 40], weight[10, 50], weight[11, 60] = np.nan, np.inf, -np.inf
    weight[12] = np.where(rng.random(256) < 0.5, 127.0, -127.0)
    weight[13] = rng.integers(-24, 25, 256) / 4
    weight[14, :] = 1e-38
    weight[15, ::2] = 70000
    return weight


@pytest.mark.parametrize(("format", "group_size"), FORMAT_GROUPS)
def test_all_targets_pack_the_same_bytes(format, group_size, pool, rng):
    before = isa.active()
    for source in (
        *([Source(awkward(rng))] if format in ROUNDED else []),
        *([quantised(format, (40, 256), rng, group_size)] if format in QUANTISED else []),
    ):
        products = []
        for target in isa.available():
            isa.force(target)
            linear = source.linear(format, group_size)
            isa.force("scalar")
            products.append(product(linear, pool))
        isa.force(before)
        for other in products[1:]:
            assert np.array_equal(other.view(np.uint32), products[0].view(np.uint32))


@pytest.mark.parametrize("format", QUANTISED)
def test_experts_take_quantised_weights(target, format, pool, rng):
    layer = MoeLayer(MoeCase(3, 256, 512, 2, 9), rng)
    layer.quantised = True
    out = layer.forward(layer.pack(dict.fromkeys(("gate", "up", "down"), format), pool), pool)
    reference.assert_close(out, layer.expected(format))


def test_torch_and_narrow_scales_are_taken_as_numpy_ones(pool, rng):
    codes, scales, _ = quantised("fp8", (130, 256), rng)
    expected = product(Source(codes, scales).linear("fp8"), pool)
    weight = torch.from_numpy(codes).view(torch.float8_e4m3fn)
    for other in (weight, codes.view(ml_dtypes.float8_e4m3fn)):
        assert np.array_equal(product(Source(other, scales).linear("fp8"), pool), expected)
    scales = torch.from_numpy(scales)
    assert np.array_equal(product(Source(weight, scales).linear("fp8"), pool), expected)

    q, scales, zeros = quantised("int4_zp", (24, 256), rng)
    bits = reference.bf16_bits(scales)
    expected = product(Source(q, reference.from_bf16(bits), zeros).linear("int4_zp"), pool)
    as_torch = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    for other in (bits.view(ml_dtypes.bfloat16), as_torch):
        assert np.array_equal(product(Source(q, other, zeros).linear("int4_zp"), pool), expected)
    half = scales.astype(np.float16)
    expected = product(Source(q, half.astype(np.float32), zeros).linear("int4_zp"), pool)
    for other in (half, torch.from_numpy(half)):
        assert np.array_equal(product(Source(q, other, zeros).linear("int4_zp"), pool), expected)


def zeros(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


def floats(*shape):
    return zeros(*shape, dtype=np.float32)


def with_value(value, dtype=np.uint8):
    weight = zeros(8, 64, dtype=dtype)
    weight[3, 5] = value
    return weight


@pytest.mark.parametrize(
    ("format", "arguments", "message"),
    [
        *(
            (name, (floats(8, 256),), "must be given its own bytes .*got float32")
            for name in K_QUANTS
        ),
        ("fp8", (floats(8, 256),), "fp8 must be given its own bytes as uint8; got float32"),
        ("bf16", (zeros(8, 64),), r"bf16 must be given floats .*; got integers"),
        ("q4_0", (zeros(8, 17),), "rows of q4_0 must be a multiple of 18 bytes; got 17"),
        ("q4_k", (zeros(8, 288 + 1),), "rows of q4_k must be a multiple of 144 bytes; got 289"),
        ("mxfp4", (zeros(8, 24), zeros(8, 1)), "rows of mxfp4 must be a multiple of 16 .*got 24"),
        ("q8_0", (zeros(34),), "weight must be .*got uint8 .34,."),
        ("int8", (zeros(8, 64),), "scales must be given for int8; got None"),
        ("fp8", (zeros(8, 64),), "scales must be given for fp8; got None"),
        ("mxfp4", (zeros(8, 32),), "scales must be given for mxfp4; got None"),
        ("int4_zp", (zeros(8, 64), floats(8, 2)), "zeros must be given for int4_zp; got None"),
        (
            "int4",
            (zeros(8, 64), floats(8, 2), zeros(8, 2)),
            "zeros must be None for int4; got some",
        ),
        ("q4_0", (zeros(8, 36), floats(8, 2)), "scales must be None for q4_0; got some"),
        ("int4", (floats(8, 64), floats(8, 2)), "scales .*must be None with float .*got some"),
        ("int8", (zeros(8, 64), floats(8, 3)), r"scales must be .*\(8, 2\).*got float32 \(8, 3\)"),
        ("int8", (zeros(8, 65), floats(8, 2)), r"scales must be .*\(8, 3\).*got float32 \(8, 2\)"),
        ("fp8", (zeros(8, 300), floats(1, 2)), r"scales must be .*\(1, 3\).*got float32 \(1, 2\)"),
        ("mxfp4", (zeros(8, 32), floats(8, 2)), r"scales must be .*uint8 .*got float32"),
        ("int8", (zeros(8, 64), zeros(8, 2)), r"scales must be .*float32 .*got uint8"),
        ("int4_zp", (zeros(8, 64), floats(8, 2), zeros(8, 1)), r"zeros must be .*\(8, 2\).*got"),
        ("int4", (with_value(16), floats(8, 2)), r"int4 values must lie in \[0, 15\]; got 16"),
        ("int4", (with_value(-1, np.int8), floats(8, 2)), r"\[0, 15\]; got 255"),
        ("int4_zp", (with_value(99), floats(8, 2), zeros(8, 2)), r"\[0, 15\]; got 99"),
        (
            "int4_zp",
            (zeros(8, 64), floats(8, 2), np.full((8, 2), 16, np.uint8)),
            r"int4_zp zero points must lie in \[0, 15\]; got 16",
        ),
        (
            "fp8",
            (with_value(0x7F), floats(1, 1)),
            "fp8 weights must be finite; got the NaN code 127",
        ),
        (
            "fp8",
            (with_value(0xFF), floats(1, 1)),
            "fp8 weights must be finite; got the NaN code 255",
        ),
    ],
)
def test_what_a_format_cannot_hold_is_refused(format, arguments, message, pool):
    for threads in (None, pool):
        with pytest.raises(ValueError, match=rf"^\[linear\.pack\] .*{message}"):
            Source(*arguments).linear(format, pool=threads)


@pytest.mark.parametrize("format", K_QUANTS)
def test_k_quants_need_whole_super_blocks(format):
    message = rf"^\[experts\] a weight in {format} must have a multiple of 256 columns; got 128$"
    with pytest.raises(ValueError, match=message):
        Experts.empty(2, 256, 128, gate=format, up=format, down=format)


def test_blocks_of_a_row_that_is_no_multiple_are_refused():
    experts = Experts.empty(2, 40, 64, gate="q4_0", up="mxfp4", down="q4_1")
    for name, weight, scales in (
        ("gate", zeros(64, 18), None),
        ("up", zeros(64, 20), zeros(64, 1)),
    ):
        with pytest.raises(ValueError, match=r"^\[experts\.put\] .* multiple of 32; got 40$"):
            experts.put(0, name, weight, scales=scales)


def test_a_refused_weight_leaves_its_place_empty():
    experts = Experts.empty(1, 64, 8, gate=None, up="int4", down="bf16")
    experts.put(0, "down", floats(64, 8))
    with pytest.raises(ValueError, match="got 16"):
        experts.put(0, "up", with_value(16), scales=floats(8, 2))
    assert not experts.complete


@pytest.mark.parametrize("format", ROUNDED)
def test_floats_beyond_what_a_scale_can_hold_do_not_look_healthy(target, format, pool):
    """f16 scales end at 65504, and a float32 one over 7 steps never does."""
    weight = np.ones((8, 64), np.float32)
    weight[3] = 3e38
    out = product(Linear.pack(weight, format=format), pool, np.ones((2, 64), np.float32))
    assert np.isfinite(np.delete(out, 3, axis=1)).all()
    assert not (np.abs(out[:, 3]) < 1e38).any()
