# SPDX-License-Identifier: Apache-2.0
"""Targets: what is offered, what is forced, what really runs."""

import os
import subprocess
import sys

import numpy as np
import pytest

from kt_kernel import Linear, Stream, isa
from kt_kernel.formats import FORMATS


def test_scalar_is_always_available_and_available_is_part_of_compiled():
    assert "scalar" in isa.available()
    assert set(isa.available()) <= set(isa.compiled())
    assert isa.active() in isa.available()


def test_best_target_comes_first_and_is_the_default():
    code = "from kt_kernel import isa; print(isa.active())"
    assert _python(code).stdout.strip() == isa.available()[0]


def test_force_selects_and_unknown_names_are_refused(target):
    assert isa.active() == target
    with pytest.raises(ValueError, match="scalar") as error:
        isa.force("mmx")
    assert "mmx" in str(error.value)
    assert isa.active() == target


def test_forced_target_is_the_one_that_runs(pool, rng):
    """The scalar target has no fused multiply-add, so long float sums round differently."""
    if "avx2" not in isa.available():
        pytest.skip("this CPU has no AVX2 with FMA and F16C")
    x = rng.standard_normal((4, 700), np.float32)
    linear = Linear.pack(rng.standard_normal((64, 700), np.float32), format="float32")
    results = {}
    before = isa.active()
    for name in ("scalar", "avx2", "scalar", "avx2"):
        isa.force(name)
        out = np.empty((4, 64), np.float32)
        Stream(pool).linear(x, linear, out)
        assert np.array_equal(results.setdefault(name, out), out)
    isa.force(before)
    assert not np.array_equal(results["scalar"], results["avx2"])


def test_environment_chooses_the_target(target):
    code = "from kt_kernel import isa; print(isa.active())"
    assert _python(code, KT_ISA=target).stdout.strip() == target


def test_unknown_name_in_the_environment_is_a_clear_error_not_a_fallback():
    result = _python("from kt_kernel import isa; isa.active()", KT_ISA="mmx", check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: [")
    assert "mmx" in last
    assert all(name in last for name in isa.available())


def test_kernels_are_named():
    assert {"prepare_rows", "gemm_int4", "attention", "route"} <= set(isa.kernels())


def _python(code: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "KT_ISA"} | environment  # noqa: TID251  # a child's environment
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=check
    )


def test_the_matrix_names_the_owner_of_every_kernel_of_every_target():
    matrix = isa.matrix()
    assert list(matrix) == isa.kernels()
    for owners in matrix.values():
        assert list(owners) == isa.compiled()
        assert set(owners.values()) <= set(isa.compiled())
        assert owners["scalar"] == "scalar"


def test_the_vector_target_owns_what_is_fast():
    if "avx2" not in isa.compiled():
        pytest.skip("no AVX2 in this build")
    matrix = isa.matrix()
    assert all(matrix[f"gemm_{name}"]["avx2"] == "avx2" for name in FORMATS)
