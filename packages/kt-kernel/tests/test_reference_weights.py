# SPDX-License-Identifier: Apache-2.0
"""The oracle of weight formats against the libraries of those who publish them."""

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from gguf import quants

from . import reference_weights
from .cases import GGUF_FORMATS, INTEGER_GROUPS
from .reference import Stored, grouped
from .sources import Source, quantised


def gguf_type(format):
    return getattr(gguf.GGMLQuantizationType, format.replace("_k", "_K").upper())


@pytest.mark.parametrize("format", GGUF_FORMATS)
def test_gguf_blocks_mean_what_gguf_says(format, rng):
    source = quantised(format, (40, 512), rng)
    expected = quants.dequantize(source.weight, gguf_type(format))
    # gguf computes in float32: a product and a sum.
    stored = reference_weights.stored(source, format)
    size = np.abs(stored.values) + (0 if stored.minimum is None else np.abs(expected).max())
    assert (np.abs(stored.values - expected) <= 2 * 2.0**-23 * size).all()


@pytest.mark.parametrize("format", ["q4_0", "q4_1", "q8_0"])
def test_what_gguf_quantises_we_read(format, rng):
    weight = rng.standard_normal((16, 256), np.float32)
    source = Source(quants.quantize(weight, gguf_type(format)))
    stored = reference_weights.stored(source, format)
    error = np.sqrt(np.mean((stored.values - weight) ** 2))
    ours = reference_weights.stored(Source(weight), format).values
    assert error == pytest.approx(np.sqrt(np.mean((ours - weight) ** 2)), rel=0.03)
    assert np.mean(np.abs(stored.values - ours) > 1e-3 * np.abs(ours).max()) < 0.05


def test_e4m3_is_that_of_ml_dtypes_and_torch():
    codes = np.arange(256, dtype=np.uint8)
    ours = reference_weights.e4m3(codes)
    assert np.array_equal(ours, codes.view(ml_dtypes.float8_e4m3fn).astype(float), equal_nan=True)
    theirs = torch.from_numpy(codes).view(torch.float8_e4m3fn).double().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)


def test_fp8_scales_cover_tiles_of_128(rng):
    source = quantised("fp8", (140, 300), rng)
    values = reference_weights.stored(source, "fp8").values
    for n, k in ((0, 0), (127, 127), (128, 128), (139, 299), (5, 256)):
        code = source.weight[n, k].view(ml_dtypes.float8_e4m3fn).astype(float)
        assert values[n, k] == code * float(source.scales[n // 128, k // 128])


def test_e2m1_and_e8m0_are_those_of_ml_dtypes():
    codes = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(float)
    assert np.array_equal(reference_weights.E2M1, codes)
    exponents = np.arange(256, dtype=np.uint8)
    ones = Source(np.full((256, 16), 0x22, np.uint8), exponents[:, None])  # 2 is the code of 1.0
    values = reference_weights.stored(ones, "mxfp4").values[:, 0]
    theirs = exponents.view(ml_dtypes.float8_e8m0fnu).astype(float)
    assert np.array_equal(values, theirs, equal_nan=True)


def test_mxfp4_rounds_to_e2m1_as_ml_dtypes_does(rng):
    weight = rng.standard_normal((16, 64), np.float32)
    weight[0] = np.arange(64) / 8  # every middle between two codes, and what saturates
    stored = reference_weights.stored(Source(weight), "mxfp4")
    scale = np.repeat(2 * stored.scale, 32, axis=1)
    largest = np.abs(grouped(weight, 32)).max(-1)
    assert np.array_equal(2 * stored.scale, 2.0 ** (np.floor(np.log2(largest)) - 2))
    limited = np.clip(weight / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(float)
    assert np.array_equal(stored.values, limited * scale)


@pytest.mark.parametrize(("format", "group_size"), INTEGER_GROUPS)
def test_integers_with_scales(format, group_size, rng):
    k = 300
    source = quantised(format, (3, k), rng, group_size)
    values = reference_weights.stored(source, format, group_size).values
    for n, at in ((0, 0), (1, 31), (2, 64), (0, 128), (2, 299)):
        group = at // (group_size or k)
        offset = 0 if format == "int8" else 8
        if source.zeros is not None:
            offset = int(source.zeros[n, group])
        scale = source.scales[n, group].astype(ml_dtypes.bfloat16).astype(float)
        assert values[n, at] == scale * (int(source.weight[n, at]) - offset)


def test_values_are_scale_times_q_plus_minimum():
    q = np.arange(40.0)[None]
    scale, minimum = np.array([[2.0, 3.0]]), np.array([[0.5, -1.0]])
    values = Stored("int8_g32", q, scale, minimum).values
    assert np.array_equal(values[0, [1, 31, 32]], [2.5, 62.5, 95.0])
    assert np.array_equal(Stored("f32", q).values, q)
