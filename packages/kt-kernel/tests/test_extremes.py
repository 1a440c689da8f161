# SPDX-License-Identifier: Apache-2.0
"""The largest products that integer formats can have: int16 and int32 sums that hold them, exactly.

Scales are 1 and activations +-127, which is their own int8, so that every sum is an integer and the
expected result is exact. All codes at one end of a format are the worst case of its chain of int16
sums; a chain that is one link too long, or saturates, is off by thousands.
"""

import numpy as np
import pytest

from kt_kernel import Stream

from . import gguf_blocks, reference_weights
from .cases import FORMATS
from .sources import Source

N, K = 48, 512
# Smallest and largest stored value.
CODES = {
    "int8": (-128, 127),
    "q8_0": (-128, 127),
    "q6_k": (0, 63),
    "q5_k": (0, 31),
    "q4_1": (0, 15),
    "q4_k": (0, 15),
    "int4": (0, 15),
    "int4_zp": (0, 15),
    "q4_0": (0, 15),
    "mxfp4": (7, 15),  # 6.0 and -6.0
}


def signs(rows, rng):
    """(rows, K) of +-1: constant, alternating at every distance that a kernel sums over, random."""
    k = np.arange(K)
    patterns = [np.ones(K), -np.ones(K)]
    patterns += [1 - 2.0 * (k // distance % 2) for distance in (1, 2, 4, 8, 16, 32, 64)]
    patterns += [rng.choice([-1.0, 1.0], K) for _ in range(rows - len(patterns))]
    return np.array(patterns)


def source(format, high):
    """Every weight at the end of the codes that `high` (N, K) says; sub-scales at theirs."""
    low, top = CODES[format]
    q = np.where(high, top, low)
    rows = np.arange(N)
    if format.endswith("_k"):
        # By row: the sub-scales' own extremes, of which those of q6_k are signed.
        scales = np.where(rows % 3, 127, -128) if format == "q6_k" else np.where(rows % 3, 63, 32)
        fields = {"scales": scales[:, None], "minima": np.where(rows % 2, 63, 0)[:, None]}
        return Source(gguf_blocks.block(format, q, 1, 1, **fields))
    if format.startswith("q"):
        return Source(gguf_blocks.block(format, q, 1, minimum=np.where(rows % 2, 15, -15)[:, None]))
    if format == "mxfp4":
        pairs = (q[:, ::2] | q[:, 1::2] << 4).astype(np.uint8)
        return Source(pairs, np.full((N, K // 32), 127, np.uint8))
    zeros = None
    if format == "int4_zp":
        zeros = np.repeat(np.where(rows % 2, 15, 0)[:, None], K // 32, axis=1).astype(np.uint8)
    dtype = np.int8 if format == "int8" else np.uint8
    return Source(q.astype(dtype), np.ones((N, K // 32), np.float32), zeros)


def test_every_integer_format_has_extremes():
    assert set(CODES) == {name for name in FORMATS if reference_weights.mode(name) == "int8_g32"}


@pytest.mark.parametrize("rows", [1, 4, 33])
@pytest.mark.parametrize("format", CODES)
def test_sums_of_the_largest_products_are_exact(target, format, rows, pool, rng):
    x = (127 * signs(33, rng)).astype(np.float32)
    # Weights follow a pattern of signs, so that some row of x meets each with equal signs.
    weight = source(format, signs(N, rng) > 0)
    stored = reference_weights.stored(weight, format)
    expected = x.astype(np.int64) @ stored.values.astype(np.int64).T
    assert np.abs(expected).max() >= K * 127 * np.abs(stored.values).max() / 2
    linear, out = weight.linear(format), np.empty((rows, N), np.float32)
    for begin in range(0, len(x), rows):
        part = np.ascontiguousarray(x[begin : begin + rows])
        Stream(pool).linear(part, linear, out[: len(part)])
        # Partial sums beyond 2^24 round, unlike those of a block.
        tolerance = np.abs(expected[begin : begin + rows]).max() * 2.0**-22
        error = np.abs(out[: len(part)] - expected[begin : begin + rows])
        assert error.max() <= (tolerance if np.abs(expected).max() >= 2**24 else 0)
