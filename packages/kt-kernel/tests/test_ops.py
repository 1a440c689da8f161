# SPDX-License-Identifier: Apache-2.0
"""Ops on every target; activate, linear, attention, moe and route have files of their own."""

import ml_dtypes
import numpy as np
import pytest
import torch

from kt_kernel import Router

from . import reference, reference_weights
from .cases import FLOAT_DTYPES, GGUF_FORMATS, ROWS, k_multiple
from .gguf_blocks import block
from .sources import quantised

F32 = np.float32


# --- embedding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("hidden", [1, 8, 27, 64])
def test_embedding_copies_rows(stream, dtype, hidden, rng):
    weight = reference.encode(rng.standard_normal((50, hidden), F32), dtype)
    for m in ROWS:
        ids = rng.integers(0, 50, m).astype(np.int32)
        out = np.full((m, hidden), np.nan, F32)
        stream.embedding(ids, weight, out, dtype="bf16" if dtype == "bf16" else None)
        reference.assert_close(out, reference.embedding(ids, reference.decode(weight, dtype)))


@pytest.mark.parametrize("bad", [-1, 50, 2**31 - 1, -(2**31)])
def test_embedding_refuses_ids_outside_the_vocabulary(stream, bad):
    weight, out = np.ones((50, 8), F32), np.full((2, 8), 7, F32)
    with pytest.raises(ValueError, match=rf"^\[embedding\] ids must lie in \[0, 50\); got {bad}$"):
        stream.embedding(np.array([1, bad], np.int32), weight, out)
    assert (out == 7).all()


@pytest.mark.parametrize("format", GGUF_FORMATS)
@pytest.mark.parametrize("blocks", [1, 3])
def test_embedding_unpacks_the_rows_asked_for(stream, format, blocks, rng):
    columns = blocks * k_multiple(format, quantised=True)
    source = quantised(format, (50, columns), rng)
    values = reference_weights.stored(source, format).values.astype(F32)  # rounded once, as ours
    for m in ROWS:
        ids = rng.integers(0, 50, m).astype(np.int32)
        out = np.full((m, columns), np.nan, F32)
        stream.embedding(ids, source.weight, out, format=format)
        assert np.array_equal(out, values[ids])


def test_embedding_takes_the_extremes_of_blocks(stream):
    """The largest values, no scale, an infinite one, and one that is no number."""
    halves = np.array([65504, 0, np.inf, np.nan, -(2.0**-24)], np.float16)
    rows = block("q8_0", np.full((5, 32), -128), halves[:, None])
    rows[1:, 2:4] = 0, 127
    out = np.empty((5, 32), F32)
    stream.embedding(np.arange(5, dtype=np.int32), rows, out, format="q8_0")
    with np.errstate(invalid="ignore"):
        expected = rows[:, 2:].view(np.int8) * halves[:, None].astype(F32)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("format", "row_bytes", "rule"),
    [
        ("q4_0", 17, r"rows of q4_0 must be a multiple of 18 bytes; got 17"),
        ("q6_k", 144, r"rows of q6_k must be a multiple of 210 bytes; got 144"),
        ("int8", 32, r"format must be floats or blocks with scales of their own; got int8"),
        ("mxfp4", 16, r"format must be floats or blocks with scales of their own; got mxfp4"),
        ("q9", 32, r"format must be one of .*; got q9"),
        ("bf16", 32, r"weight must be C-contiguous bf16 .*; got uint8 \(4, 32\)"),
    ],
)
def test_embedding_refuses_tables_that_are_none(stream, format, row_bytes, rule):
    out = np.full((1, 32), 7, F32)
    with pytest.raises(ValueError, match=rf"^\[embedding\] {rule}$"):
        stream.embedding(
            np.zeros(1, np.int32), np.zeros((4, row_bytes), np.uint8), out, format=format
        )
    assert (out == 7).all()


@pytest.mark.parametrize("bad", [-1, 50])
def test_embedding_refuses_ids_outside_a_table_of_blocks(stream, bad):
    weight, out = np.zeros((50, 18), np.uint8), np.full((2, 32), 7, F32)
    with pytest.raises(ValueError, match=rf"^\[embedding\] ids must lie in \[0, 50\); got {bad}$"):
        stream.embedding(np.array([1, bad], np.int32), weight, out, format="q4_0")
    with pytest.raises(ValueError, match=r"^\[embedding\] out must be .*\(1, 32\); got"):
        stream.embedding(np.array([1], np.int32), weight, out, format="q4_0")
    assert (out == 7).all()


# --- rms_norm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 7, 8, 33, 576])
def test_rms_norm_matches(stream, columns, rng):
    weight = rng.standard_normal(columns, F32)
    for m in ROWS:
        x = 3 * rng.standard_normal((m, columns), F32)
        out = np.full_like(x, np.nan)
        stream.rms_norm(x, weight, out, eps=1e-5)
        reference.assert_close(out, reference.rms_norm(x, weight, 1e-5))


def test_rms_norm_per_head_and_in_place(stream, rng):
    x, weight = rng.standard_normal((5, 3, 20), F32), rng.standard_normal(20, F32)
    expected = reference.rms_norm(x, weight, 1e-6)
    stream.rms_norm(x, weight, x, eps=1e-6)
    reference.assert_close(x, expected)


def test_rms_norm_of_zeros_is_zero_and_of_nan_is_its_own_affair(stream, rng):
    x = rng.standard_normal((3, 33), F32)
    x[0] = 0
    clean = np.empty_like(x)
    stream.rms_norm(x, np.ones(33, F32), clean, eps=1e-5)
    assert not clean[0].any()
    x[1, 4] = np.nan
    out = np.empty_like(x)
    stream.rms_norm(x, np.ones(33, F32), out, eps=1e-5)
    assert np.isnan(out[1]).all()
    assert np.array_equal(out[[0, 2]], clean[[0, 2]])


# --- add ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 9, 40000])
def test_add_is_exact(stream, columns, rng):
    for m in (0, 1, 3):
        x, y = (rng.standard_normal((m, columns), F32) for _ in range(2))
        out = np.full_like(x, np.nan)
        stream.add(x, y, out)
        reference.assert_close(out, reference.add(x, y))
        stream.add(x, y, y)
        assert np.array_equal(y, out)


# --- rope_write_kv -----------------------------------------------------------------------------


def rope_inputs(rng, tokens=5, num_heads=4, num_kv_heads=2, head_dim=20, rotary_dim=12):
    q = rng.standard_normal((tokens, num_heads, head_dim), F32)
    k, v = (rng.standard_normal((tokens, num_kv_heads, head_dim), F32) for _ in range(2))
    angle = np.arange(40)[:, None] / 10.0 ** np.arange(rotary_dim // 2)
    positions = rng.integers(0, 40, tokens).astype(np.int32)
    return q, k, v, np.cos(angle).astype(F32), np.sin(angle).astype(F32), positions


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(20, 12), (64, 64), (8, 2), (24, 8)])
def test_rope_rotates_and_stores(stream, dtype, head_dim, rotary_dim, rng):
    q, k, v, cos, sin, positions = rope_inputs(rng, 5, 4, 2, head_dim, rotary_dim)
    k_cache, v_cache = (reference.encode(np.full((3, 4, 2, head_dim), 9, F32), dtype) for _ in "kv")
    untouched = k_cache.copy()
    slots = np.array([11, 0, -1, 5, 4], np.int32)
    claim = "bf16" if dtype == "bf16" else None
    rotated, stored_k = q.copy(), k.copy()
    stream.rope_write_kv(
        rotated, stored_k, v, cos, sin, positions, slots, k_cache, v_cache, dtype=claim
    )
    reference.assert_close(rotated, reference.rope(q, cos, sin, positions))
    assert np.array_equal(stored_k, k)
    expected_k = reference.rope(k, cos, sin, positions)
    written = [0, 1, 3, 4]
    got_k = reference.decode(k_cache, dtype).reshape(12, 2, head_dim)
    got_v = reference.decode(v_cache, dtype).reshape(12, 2, head_dim)
    chosen = reference.Expected(expected_k.value[written], expected_k.tolerance[written])
    reference.assert_close(got_k[slots[written]], reference.stored(chosen, dtype))
    assert np.array_equal(
        got_v[slots[written]], reference.decode(reference.encode(v[written], dtype), dtype)
    )
    free = np.setdiff1d(np.arange(12), slots)
    assert np.array_equal(
        k_cache.reshape(12, 2, head_dim)[free], untouched.reshape(12, 2, head_dim)[free]
    )


@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(20, 12), (64, 64), (9, 4)])
def test_rope_quantises_heads_after_rotation(stream, head_dim, rotary_dim, rng):
    q, k, v, cos, sin, positions = rope_inputs(rng, 5, 4, 2, head_dim, rotary_dim)
    k[3, 1, 0] = np.inf
    v[4] = 0
    v[1, 0, 2] = np.nan
    caches = [np.full((3, 4, 2, head_dim), 9, np.int8) for _ in "kv"]
    scales = [np.full((3, 4, 2), 9, F32) for _ in "kv"]
    slots = np.array([11, 0, -1, 5, 4], np.int32)
    stream.rope_write_kv(
        q, k, v, cos, sin, positions, slots, *caches, k_scales=scales[0], v_scales=scales[1]
    )
    written = [0, 1, 3, 4]
    with np.errstate(invalid="ignore"):
        rotated = reference.rope(k, cos, sin, positions).value[written]
    for cache, scale, exact in zip(caches, scales, (rotated, v[written]), strict=True):
        got = cache.reshape(12, 2, head_dim)[slots[written]]
        got_scale = scale.reshape(12, 2)[slots[written]]
        _, expected_scale = reference.quantise_heads(exact.astype(F32))
        np.testing.assert_allclose(got_scale, expected_scale, rtol=4 * reference.EPS)
        good = np.isfinite(expected_scale)
        assert (good.sum(), (got[~good] == 0).all()) == (good.size - 1, True)
        error = np.abs(got * got_scale[..., None].astype(np.float64) - exact)[good]
        assert (error <= 0.501 * expected_scale[good][:, None]).all()
        free = np.setdiff1d(np.arange(12), slots)
        assert (cache.reshape(12, -1)[free] == 9).all()
        assert (scale.reshape(12, -1)[free] == 9).all()


@pytest.mark.parametrize(
    ("positions", "slots", "message"),
    [
        ([0, 40], [0, 1], r"positions must lie in \[0, 40\); got 40$"),
        ([0, -1], [0, 1], r"positions must lie in \[0, 40\); got -1$"),
        ([0, 1], [0, 12], r"slot_mapping must lie below 12 .*; got 12$"),
    ],
)
def test_rope_refuses_positions_and_slots_outside_their_tables(
    stream, positions, slots, message, rng
):
    q, k, v, cos, sin, _ = rope_inputs(rng, 2)
    caches = np.zeros((3, 4, 2, 20), F32), np.zeros((3, 4, 2, 20), F32)
    before = q.copy()
    with pytest.raises(ValueError, match=r"^\[rope_write_kv\] " + message):
        stream.rope_write_kv(
            q, k, v, cos, sin, np.array(positions, np.int32), np.array(slots, np.int32), *caches
        )
    assert np.array_equal(q, before)


# --- all ops -----------------------------------------------------------------------------------


def test_rows_do_not_notice_their_batch(stream, rng):
    """Elementwise ops, norm and router: each row alone gives the bits it has in company."""
    x, y = (rng.standard_normal((17, 64), F32) for _ in range(2))
    weight = rng.standard_normal(64, F32)
    router = Router("sigmoid", num_groups=8, topk_groups=4, scale=2.5)

    def everything(rows):
        out = [np.empty_like(x[rows]) for _ in range(3)]
        stream.rms_norm(x[rows], weight, out[0], eps=1e-5)
        stream.activate(x[rows], y[rows], out[1])
        stream.add(x[rows], y[rows], out[2])
        ids, weights = np.empty((len(out[0]), 8), np.int32), np.empty((len(out[0]), 8), F32)
        stream.route(x[rows], ids, weights, router, bias=weight)
        return [*out, ids, weights]

    whole = everything(slice(0, 17))
    alone = [everything(slice(i, i + 1)) for i in range(17)]
    for whole_array, *rows in zip(whole, *alone, strict=True):
        assert np.array_equal(whole_array, np.concatenate(rows))


def test_libraries_are_interchangeable(stream, rng):
    """numpy with ml_dtypes, torch and bare bits give the same caches and outputs."""
    weight = rng.standard_normal((10, 16), F32)
    bits = reference.bf16_bits(weight)
    ids = np.array([3, 9], np.int32)
    outs = [np.empty((2, 16), F32), torch.empty(2, 16), np.empty((2, 16), F32)]
    stream.embedding(ids, bits, outs[0], dtype="bf16")
    stream.embedding(torch.tensor(ids), torch.tensor(weight).bfloat16(), outs[1])
    stream.embedding(ids, bits.view(ml_dtypes.bfloat16), outs[2])
    assert np.array_equal(outs[0], outs[1].numpy())
    assert np.array_equal(outs[0], outs[2])


X = np.ones((2, 8), F32)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("embedding", (np.zeros(2, np.int64), X, X.copy())),
        ("embedding", (np.zeros(3, np.int32), X, X.copy())),
        ("embedding", (np.zeros(2, np.int32), X[:, :4].copy(), X.copy())),
        ("activate", (X, X[:1], X.copy())),
        ("activate", (X, X, X.astype(np.float64))),
        ("add", (X, X[:, :4].copy(), X.copy())),
        ("add", (X, X.T.copy().T, X.copy())),
        ("add", (X, X, X[:1].copy())),
        ("route", (X, np.zeros((2, 2), np.int64), np.zeros((2, 2), F32), Router())),
        ("route", (X, np.zeros((1, 2), np.int32), np.zeros((2, 2), F32), Router())),
        ("route", (X, np.zeros((2, 3), np.int32), np.zeros((2, 2), F32), Router())),
    ],
)
def test_wrong_dtypes_and_shapes_are_refused(stream, op, arguments):
    out = arguments[2]
    before = out.copy()
    with pytest.raises(ValueError, match=rf"^\[{op}\] .*; got "):
        getattr(stream, op)(*arguments)
    assert np.array_equal(out, before)


def test_rms_norm_refuses_a_weight_of_another_width(stream):
    with pytest.raises(ValueError, match=r"^\[rms_norm\] .*; got "):
        stream.rms_norm(X, np.ones(7, F32), X.copy(), eps=1e-5)
