# SPDX-License-Identifier: Apache-2.0
"""checkpoint.formats: one table says which format a matrix is packed to."""

from __future__ import annotations

import pytest

from kt_kernel.formats import FORMATS
from kt_runtime.checkpoint.formats import BLOCKS, FLOATS, Role, common, resolve
from kt_runtime.config import WeightFormat

ROLES: tuple[Role, ...] = ("experts", "linear", "embedding", "lm_head", "router")


@pytest.mark.parametrize("stored", FLOATS + BLOCKS)
def test_native_is_what_is_stored_but_for_routers(stored: str) -> None:
    for role in ROLES:
        expected = "float32" if role == "router" else stored
        assert resolve("native", role, stored) == expected
    assert stored in FORMATS  # the kernels' own name for it


def test_several_stored_formats_have_float32_in_common() -> None:
    assert common({"q4_k"}) == "q4_k"
    assert common({"bf16"}) == "bf16"
    assert common({"bf16", "f16"}) == common({"q4_k", "q6_k"}) == "float32"


@pytest.mark.parametrize(
    ("weight_format", "experts", "others"),
    [
        ("float32", "float32", "float32"),
        ("bf16", "bf16", "bf16"),
        ("int8", "int8", "int8"),
        ("int4", "int4", "int8"),
    ],
)
@pytest.mark.parametrize("stored", ["float32", "bf16", "f16", "q4_1", "q6_k"])
def test_asked_format_counts_whatever_is_stored_but_for_tables_that_are_looked_up(
    weight_format: WeightFormat, experts: str, others: str, stored: str
) -> None:
    assert resolve(weight_format, "experts", stored) == experts
    assert resolve(weight_format, "linear", stored) == others
    assert resolve(weight_format, "lm_head", stored) == others
    assert resolve(weight_format, "embedding", stored) == stored
    assert resolve(weight_format, "router", stored) == "float32"


@pytest.mark.parametrize("stored", ["float8_e4m3fn", "int8", "float64"])
def test_other_stored_dtypes_are_refused_with_the_supported_ones(stored: str) -> None:
    with pytest.raises(ValueError, match=r"one of float32, bf16, f16, q4_0, .*; got"):
        resolve("native", "linear", stored)
