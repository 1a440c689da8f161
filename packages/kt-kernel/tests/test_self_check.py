# SPDX-License-Identifier: Apache-2.0
"""The self-check passes on a sound build, covers everything, and fails for every broken kernel."""

import math

import numpy as np
import pytest

from kt_kernel import isa, self_check
from kt_kernel.formats import FORMATS
from kt_kernel.ops import Ops
from kt_kernel.testing import negated


def test_every_op_format_and_target_is_checked_and_passes(pool):
    before = isa.active()
    checks = self_check.run(pool)
    assert isa.active() == before
    assert all(check.passed for check in checks)
    public = {name for name in vars(Ops) if not name.startswith("_")}
    assert {check.op for check in checks} == public
    for target in isa.available():
        here = [check for check in checks if check.target == target]
        for op in ("linear", "moe"):
            assert [check.format for check in here if check.op == op] == list(FORMATS)


@pytest.mark.parametrize("kernel", isa.kernels())
def test_a_kernel_that_lies_is_found_on_every_target(kernel, pool):
    before = isa.active()
    with negated(kernel):
        checks = self_check.run(pool)
    assert isa.active() == before
    assert {check.target for check in checks if not check.passed} == set(isa.available())


@pytest.mark.skipif(len(isa.available()) == 1, reason="only the scalar target is available")
def test_a_target_that_differs_from_scalar_is_found(pool, monkeypatch):
    """A difference that the formula's bound hides: 4-bit weights are only good to 10 %."""
    real = self_check.Linear.pack

    def slightly_off(weight, **options):
        if isa.active() != "scalar":
            weight = weight.copy()
            if weight.dtype == np.uint8:
                weight[0, 20] ^= 1  # bits of one or two values; scales stand elsewhere
            else:
                weight[0, 0] += 1  # moves one stored value by a step or two
        return real(weight, **options)

    monkeypatch.setattr(self_check.Linear, "pack", slightly_off)
    failed = [check for check in self_check.run(pool) if not check.passed]
    assert {(check.op, check.format) for check in failed} >= {("linear", name) for name in FORMATS}
    four_bits = [check for check in failed if check.format == "int4"]
    assert four_bits
    assert all(check.error <= check.bound for check in four_bits)
    assert "scalar" not in {check.target for check in failed}


def test_nan_passes_no_check():
    for error, difference in ((math.nan, 0.0), (0.0, math.nan)):
        assert not self_check.Check("add", "", "avx2", error, 1.0, difference, 1.0).passed
