# SPDX-License-Identifier: Apache-2.0
"""Numbers from Python: integers of any type pass, everything else is a clear error."""

import numpy as np
import pytest

from kt_kernel import Experts, MoE, Router, ThreadPool
from kt_kernel.scalars import float32, int32

from .cases import MoeCase
from .moe_layer import MoeLayer


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_any_integer_type_passes(value):
    assert int32("op", "size", value) == 3


@pytest.mark.parametrize("value", [3.0, "3", None])
def test_what_is_no_integer_is_refused(value):
    with pytest.raises(ValueError, match=r"\[op\] size must be an integer; got "):
        int32("op", "size", value)


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 10**30])
def test_what_the_core_cannot_hold_is_refused(value):
    with pytest.raises(ValueError, match=rf"\[op\] size must lie below 2\^31; got {value}"):
        int32("op", "size", value)


def test_floats_are_what_the_core_will_have():
    assert float32("op", "x", 0.1) == np.float32(0.1)
    assert float32("op", "x", 1e-50) == 0
    assert float32("op", "x", np.float64(-1e39)) == -np.inf
    for value in ("a", "7", b"7", None, [1], 10**400):
        with pytest.raises(ValueError, match=r"^\[op\] x must be a number; got "):
            float32("op", "x", value)


def test_every_size_that_python_takes_is_checked(pool, rng):
    layer = MoeLayer(MoeCase(2, 8, 8, 1, 1), rng)
    experts = layer.pack("int4", pool)
    huge = 2**40
    weight = np.zeros((1, 8), np.float32)
    for call in (
        lambda: ThreadPool(huge),
        lambda: ThreadPool(cores=[huge]),
        lambda: Experts.empty(huge, 8, 8),
        lambda: Experts.empty(1, 8, 8, group_size=huge),
        lambda: experts.put(huge, "gate", weight),
        lambda: MoE(experts, top_k=huge, pool=pool),
        lambda: MoE(experts, top_k=1, max_tokens=huge, pool=pool),
        lambda: Router(num_groups=huge),
        lambda: Router(topk_groups=huge),
    ):
        with pytest.raises(ValueError, match=r"must lie below 2\^31; got 1099511627776"):
            call()
