# SPDX-License-Identifier: Apache-2.0
"""Packed matrices and the linear op: every format and target, and what a row must not notice."""

import ml_dtypes
import numpy as np
import pytest
import torch

from kt_kernel import Linear, Stream, ThreadPool, isa

from . import reference
from .cases import FORMAT_GROUPS, FORMATS, LINEAR, ROWS


def run(x, linear, pool, out=None, **options):
    out = np.full((len(x), linear.out_features), np.nan, np.float32) if out is None else out
    Stream(pool).linear(x, linear, out, **options)
    return out


@pytest.mark.parametrize("shape", LINEAR)
@pytest.mark.parametrize(("format", "group_size"), FORMAT_GROUPS)
def test_matches_the_reference_arithmetic(target, format, group_size, shape, pool, rng):
    weight = rng.standard_normal(shape, np.float32)
    bias = rng.standard_normal(shape[0], np.float32)
    linear = Linear.pack(weight, format=format, group_size=group_size, bias=bias, pool=pool)
    for m in ROWS:
        x = rng.standard_normal((m, shape[1]), np.float32)
        expected = reference.linear(x, weight, format, group_size, bias)
        reference.assert_close(run(x, linear, pool), expected)


@pytest.mark.parametrize(("format", "group_size"), FORMAT_GROUPS)
def test_stays_within_the_quantisation_bound_of_the_exact_product(format, group_size, pool, rng):
    x = rng.standard_normal((7, 300), np.float32)
    weight = rng.standard_normal((40, 300), np.float32)
    linear = Linear.pack(weight, format=format, group_size=group_size)
    reference.assert_close(
        run(x, linear, pool), reference.linear_exact(x, weight, format, group_size)
    )


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_integer_formats_agree_between_targets(format, pool, rng):
    """The dot products are exact, so only the float epilogue may round differently."""
    x = rng.standard_normal((5, 256), np.float32)
    weight = rng.standard_normal((24, 256), np.float32)
    linear = Linear.pack(weight, format=format)
    tolerance = 2 * reference.linear(x, weight, format).tolerance
    before, results = isa.active(), []
    for name in isa.available():
        isa.force(name)
        results.append(run(x, linear, pool))
    isa.force(before)
    for other in results[1:]:
        reference.assert_close(other, reference.Expected(results[0].astype(np.float64), tolerance))


@pytest.mark.parametrize("format", FORMATS)
def test_accumulate_adds_to_the_output(target, format, pool, rng):
    x = rng.standard_normal((3, 65), np.float32)
    weight = rng.standard_normal((9, 65), np.float32)
    linear = Linear.pack(weight, format=format)
    residual = rng.standard_normal((3, 9), np.float32)
    value, tolerance = reference.linear(x, weight, format)
    out = run(x, linear, pool, residual.copy(), accumulate=True)
    size = np.abs(value) + np.abs(residual)
    expected = reference.Expected(value + residual, 2 * tolerance + 2 * reference.EPS * size)
    reference.assert_close(out, expected)


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_notice_batch_position_or_threads(target, format, pool, rng):
    x = rng.standard_normal((33, 127), np.float32)
    linear = Linear.pack(rng.standard_normal((40, 127), np.float32), format=format)
    whole = run(x, linear, pool)
    for size in (1, 2, 3, 8, 17):
        parts = [run(x[i : i + size], linear, pool) for i in range(0, 33, size)]
        assert np.array_equal(np.concatenate(parts), whole), f"in calls of {size} rows"
    for threads in (1, 3):
        assert np.array_equal(run(x, linear, ThreadPool(threads)), whole), f"{threads} threads"


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("format", FORMATS)
def test_a_bad_row_spoils_itself_only(target, format, poison, pool, rng):
    x = rng.standard_normal((6, 70), np.float32)
    linear = Linear.pack(rng.standard_normal((12, 70), np.float32), format=format)
    clean = run(x, linear, pool)
    x[2, 41] = poison
    out = run(x, linear, pool)
    assert not np.isfinite(out[2]).any()
    others = [0, 1, 3, 4, 5]
    assert np.array_equal(out[others], clean[others])


@pytest.mark.parametrize("format", FORMATS)
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


@pytest.mark.parametrize("format", FORMATS)
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
