# SPDX-License-Identifier: Apache-2.0
"""Packed matrices and the linear op: every format and target, and what a row must not notice."""

import ml_dtypes
import numpy as np
import pytest
import torch

from kt_kernel import Linear, Stream, ThreadPool, isa

from . import reference, reference_weights
from .cases import FORMAT_GROUPS, FORMATS, LINEAR, QUANTISED, ROUNDED, ROWS, k_multiple
from .sources import Source, quantised

# (format, group size, whether already quantised)
SOURCES = [
    *((format, group_size, False) for format, group_size in FORMAT_GROUPS if format in ROUNDED),
    *((format, group_size, True) for format, group_size in FORMAT_GROUPS if format in QUANTISED),
]


def make_source(format, shape, rng, group_size=32, is_quantised=False):
    """Floats unless the format cannot be made from them, or quantised ones are asked for."""
    if is_quantised or format not in ROUNDED:
        return quantised(format, shape, rng, group_size)
    return Source(rng.standard_normal(shape, np.float32))


def make(format, shape, rng, **options):
    """A packed matrix and what it holds."""
    source = make_source(format, shape, rng)
    return source.linear(format, **options), reference_weights.stored(source, format)


def run(x, linear, pool, out=None, **options):
    out = np.full((len(x), linear.out_features), np.nan, np.float32) if out is None else out
    Stream(pool).linear(x, linear, out, **options)
    return out


@pytest.mark.parametrize(("format", "group_size", "is_quantised"), SOURCES)
def test_matches_the_reference_arithmetic(target, format, group_size, is_quantised, pool, rng):
    multiple = k_multiple(format, is_quantised)
    for shape in (shape for shape in LINEAR if shape[1] % multiple == 0):
        source = make_source(format, shape, rng, group_size, is_quantised)
        bias = rng.standard_normal(shape[0], np.float32)
        linear = source.linear(format, group_size, bias=bias, pool=pool)
        stored = reference_weights.stored(source, format, group_size)
        for m in ROWS:
            x = rng.standard_normal((m, shape[1]), np.float32)
            reference.assert_close(run(x, linear, pool), reference.linear(x, stored, bias))


@pytest.mark.parametrize("format", FORMATS)
def test_several_bundles(target, format, pool, rng):
    """An odd number of bundles, the last one ragged: some targets multiply two at a time."""
    linear, stored = make(format, (72, 512), rng)
    for m in (1, 2, 4, 17):
        x = rng.standard_normal((m, 512), np.float32)
        reference.assert_close(run(x, linear, pool), reference.linear(x, stored))


@pytest.mark.parametrize("format", FORMATS)
def test_many_rows(target, format, pool, rng):
    linear, stored = make(format, (40, 256), rng)
    x = rng.standard_normal((512, 256), np.float32)
    reference.assert_close(run(x, linear, pool), reference.linear(x, stored))


@pytest.mark.parametrize(("format", "group_size"), FORMAT_GROUPS)
def test_the_packed_weight_comes_back_from_a_diagonal(target, format, group_size, pool, rng):
    """127 has scale 1 and is itself in int8: what comes out is the weight times it, rounded once
    (with a minimum: as often as there are terms)."""
    for is_quantised in (format not in ROUNDED, format in QUANTISED):
        source = make_source(format, (40, 256), rng, group_size, is_quantised)
        out = run(np.eye(256, dtype=np.float32) * 127, source.linear(format, group_size), pool)
        stored = reference_weights.stored(source, format, group_size)
        if stored.minimum is None:
            assert np.array_equal(out.T, (127 * stored.values).astype(np.float32))
        else:
            size = 127 * (np.abs(stored.values) + 2 * np.repeat(np.abs(stored.minimum), 32, axis=1))
            expected = reference.Expected(127 * stored.values, reference.EPS * size)
            reference.assert_close(out.T, expected)


@pytest.mark.parametrize(("format", "group_size"), [x for x in FORMAT_GROUPS if x[0] in ROUNDED])
def test_stays_within_the_quantisation_bound_of_the_exact_product(format, group_size, pool, rng):
    x = rng.standard_normal((7, 300), np.float32)
    weight = rng.standard_normal((40, 300), np.float32)
    linear = Linear.pack(weight, format=format, group_size=group_size)
    stored = reference_weights.stored(Source(weight), format, group_size)
    reference.assert_close(run(x, linear, pool), reference.linear_exact(x, weight, stored))


@pytest.mark.parametrize("format", FORMATS)
def test_targets_agree(format, pool, rng):
    """Integer dot products are exact, so only sums of floats may round differently."""
    x = rng.standard_normal((5, 256), np.float32)
    linear, stored = make(format, (24, 256), rng)
    tolerance = 2 * reference.linear(x, stored).tolerance
    before, results = isa.active(), []
    for name in isa.available():
        isa.force(name)
        results.append(run(x, linear, pool))
    isa.force(before)
    for other in results[1:]:
        reference.assert_close(other, reference.Expected(results[0].astype(np.float64), tolerance))


@pytest.mark.parametrize("format", FORMATS)
def test_accumulate_adds_to_the_output(target, format, pool, rng):
    k = 256 if k_multiple(format) > 1 else 65
    x = rng.standard_normal((3, k), np.float32)
    linear, stored = make(format, (9, k), rng)
    residual = rng.standard_normal((3, 9), np.float32)
    value, tolerance = reference.linear(x, stored)
    out = run(x, linear, pool, residual.copy(), accumulate=True)
    size = np.abs(value) + np.abs(residual)
    expected = reference.Expected(value + residual, 2 * tolerance + 2 * reference.EPS * size)
    reference.assert_close(out, expected)


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_notice_batch_position_or_threads(target, format, pool, rng):
    k = 256 if k_multiple(format) > 1 else 127
    x = rng.standard_normal((49, k), np.float32)
    linear, _ = make(format, (40, k), rng)
    whole = run(x, linear, pool)
    for size in (1, 2, 3, 4, 5, 6, 8, 17):
        parts = [run(x[i : i + size], linear, pool) for i in range(0, 49, size)]
        assert np.array_equal(np.concatenate(parts), whole), f"in calls of {size} rows"
    for threads in (1, 3):
        assert np.array_equal(run(x, linear, ThreadPool(threads)), whole), f"{threads} threads"


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_written_beyond_the_last_row(target, format, pool, rng):
    k = 256 if k_multiple(format) > 1 else 33
    for n in (1, 13, 23):
        linear, _ = make(format, (n, k), rng)
        for m in (1, 2, 5, 49):
            memory = np.full((m + 1, n), 7, np.float32)
            run(rng.standard_normal((m, k), np.float32), linear, pool, memory[:m])
            assert (memory[m] == 7).all()


@pytest.mark.parametrize("format", ["bf16", "f16"])
def test_ties_round_to_even(target, format, pool):
    """Of weights, and of the activations that meet bf16."""
    bits = {"bf16": 8, "f16": 11}[format]
    ties = (1 + np.arange(64) * 2.0**-bits).astype(np.float32)  # every other one is in the middle
    ties[::3] *= -1
    stored = reference_weights.stored(Source(np.diag(ties)), format)
    linear = Linear.pack(np.diag(ties), format=format)
    out = run(np.eye(64, dtype=np.float32), linear, pool)
    assert np.array_equal(out.T, stored.values)
    out = run(np.diag(ties), Linear.pack(np.eye(64, dtype=np.float32), format=format), pool)
    assert np.array_equal(out, stored.values if format == "bf16" else np.diag(ties))


def test_every_scale_of_mxfp4(target, pool):
    """2^-127, which is subnormal, to 2^127, each exactly; the last code is NaN, not infinity."""
    ones = np.full((256, 16), 0x22, np.uint8)
    linear = Linear.pack(ones, format="mxfp4", scales=np.arange(256, dtype=np.uint8)[:, None])
    x = np.zeros((2, 32), np.float32)
    x[:, 0] = 127 * np.exp2([30, -30])  # products stay in the range of float32
    out = run(x, linear, pool)
    values = 127 * np.exp2(np.arange(255) - 127.0)
    assert np.array_equal(out[0, :128], values[:128] * 2.0**30)
    assert np.array_equal(out[1, 128:255], values[128:] * 2.0**-30)
    assert np.isnan(out[:, 255]).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("format", FORMATS)
def test_a_bad_row_spoils_itself_only(target, format, poison, pool, rng):
    k = 256 if k_multiple(format) > 1 else 70
    x = rng.standard_normal((6, k), np.float32)
    linear, _ = make(format, (12, k), rng)
    clean = run(x, linear, pool)
    x[2, 41] = poison
    out = run(x, linear, pool)
    assert not np.isfinite(out[2]).any()
    others = [0, 1, 3, 4, 5]
    assert np.array_equal(out[others], clean[others])


@pytest.mark.parametrize("format", ROUNDED)
def test_zeros_and_denormals(target, format, pool):
    x = np.zeros((3, 64), np.float32)
    x[1] = 1e-41
    weight = np.zeros((8, 64), np.float32)
    weight[1] = 1e-41
    weight[2] = 1.0
    out = run(x, Linear.pack(weight, format=format), pool)
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= 64 * 1.1e-41
    assert not out[0].any()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("format", "group_size"), [x for x in FORMAT_GROUPS if x[0] in ROUNDED])
def test_a_bad_weight_spoils_its_output_only(target, format, group_size, poison, pool, rng):
    x = rng.standard_normal((6, 70), np.float32)
    weight = rng.standard_normal((12, 70), np.float32)
    clean = run(x, Linear.pack(weight, format=format, group_size=group_size), pool)
    weight[7, 41] = poison
    out = run(x, Linear.pack(weight, format=format, group_size=group_size), pool)
    assert not np.isfinite(out[:, 7]).any()
    others = np.arange(12) != 7
    assert np.array_equal(out[:, others], clean[:, others])


@pytest.mark.parametrize("format", ROUNDED)
def test_weights_of_all_dtypes_and_libraries_pack_alike(format, pool, rng):
    bits = reference.bf16_bits(rng.standard_normal((13, 33), np.float32))
    values = reference.from_bf16(bits)
    x = rng.standard_normal((2, 33), np.float32)
    expected = run(x, Linear.pack(values, format=format), pool)
    for weight in (torch.from_numpy(values).bfloat16(), bits.view(ml_dtypes.bfloat16)):
        assert np.array_equal(run(x, Linear.pack(weight, format=format, pool=pool), pool), expected)
    packed = Linear.pack(bits, format=format, dtype="bf16")
    assert np.array_equal(run(x, packed, pool), expected)
    half = values.astype(np.float16)
    expected = run(x, Linear.pack(half.astype(np.float32), format=format), pool)
    assert np.array_equal(run(x, Linear.pack(half, format=format), pool), expected)


def test_packing_copies_and_reports_its_shape(pool, rng):
    weight = rng.standard_normal((13, 33), np.float32)
    x = rng.standard_normal((2, 33), np.float32)
    linear = Linear.pack(weight, format="int8", group_size=64)
    before = run(x, linear, pool)
    weight[:] = 0
    assert np.array_equal(run(x, linear, pool), before)
    assert (linear.out_features, linear.in_features) == (13, 33)
    assert (linear.format, linear.group_size) == ("int8", 64)
    assert Linear.pack(weight, format="bf16").group_size == 0


def test_torch_arrays_and_read_only_inputs(pool, rng):
    x = rng.standard_normal((2, 33), np.float32)
    weight = rng.standard_normal((13, 33), np.float32)
    expected = run(x, Linear.pack(weight, format="float32"), pool)
    for array in (x, weight):
        array.flags.writeable = False
    linear = Linear.pack(weight, format="float32")
    assert np.array_equal(run(x, linear, pool), expected)
    out = torch.empty(2, 13)
    Stream(pool).linear(torch.tensor(x), linear, out)
    assert np.array_equal(out.numpy(), expected)


ONES = np.ones((4, 8), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Linear.pack(ONES, format="int3"), r"^\[linear[^]]*\].*int3"),
        (lambda: Linear.pack(ONES, format="int4", group_size=48), r"^\[linear[^]]*\].*48"),
        (lambda: Linear.pack(ONES.astype(np.float64)), r"^\[linear\.pack\] weight .*got float64"),
        (lambda: Linear.pack(ONES[0]), r"^\[linear\.pack\] weight .*got float32 \(8,\)"),
        (lambda: Linear.pack(ONES[:, :0].copy()), r"^\[linear[^]]*\].*got"),
        (lambda: Linear.pack(ONES, bias=np.ones(3, np.float32)), r"^\[linear[^]]*\] bias.*3"),
    ],
)
def test_bad_weights_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("x", "out"),
    [
        (np.ones((2, 7), np.float32), np.ones((2, 4), np.float32)),
        (np.ones((2, 8), np.float32), np.ones((2, 5), np.float32)),
        (np.ones((2, 8), np.float32), np.ones((3, 4), np.float32)),
        (np.ones((2, 8)), np.ones((2, 4), np.float32)),
        (np.ones((2, 8), np.float32), np.ones((2, 4))),
    ],
)
def test_bad_calls_are_refused_and_write_nothing(x, out, pool):
    before = out.copy()
    with pytest.raises(ValueError, match=r"^\[linear\] .*; got "):
        Stream(pool).linear(x, Linear.pack(ONES, format="float32"), out)
    assert np.array_equal(out, before)


@pytest.mark.parametrize("num_tokens", [1, 5, 33])
@pytest.mark.parametrize("accumulate", [False, True])
def test_several_weights_are_one_after_the_other(target, num_tokens, accumulate, pool, rng):
    """Formats that share their activations and formats that do not, of uneven widths."""
    x = rng.standard_normal((num_tokens, 256), np.float32)
    widths = {"int4": 40, "q6_k": 24, "float32": 9, "bf16": 131, "int8": 1}
    linears = [make(format, (n, 256), rng)[0] for format, n in widths.items()]
    before = [rng.standard_normal((num_tokens, n), np.float32) for n in widths.values()]
    together = [out.copy() for out in before]
    Stream(pool).linear(x, linears, together, accumulate=accumulate)
    for linear, start, out in zip(linears, before, together, strict=True):
        assert np.array_equal(run(x, linear, pool, start.copy(), accumulate=accumulate), out)


def test_several_weights_must_fit_together(pool):
    x = np.zeros((2, 64), np.float32)
    wide = Linear.pack(np.zeros((8, 64), np.float32), format="float32")
    other = Linear.pack(np.zeros((8, 32), np.float32), format="float32")
    outs = np.zeros((2, 2, 8), np.float32)
    stream = Stream(pool)
    for linears, out, rule in (
        ([], [], r"as many, at least one; got 0 and 0"),
        ([wide, wide], [outs[0]], r"as many, at least one; got 2 and 1"),
        ([wide, other], list(outs), r"in_features 64 as x; got 32"),
        ([wide, wide], [outs[0], outs[0]], r"out must not overlap out"),
        ([wide], [x[:, :8]], r"C-contiguous"),
    ):
        with pytest.raises(ValueError, match=rf"\[linear\].*{rule}"):
            stream.linear(x, linears, out)
