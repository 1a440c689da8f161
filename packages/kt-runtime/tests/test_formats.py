# SPDX-License-Identifier: Apache-2.0
"""checkpoint.formats: one table says which format a matrix is packed to."""

from __future__ import annotations

import pytest
import torch

from kt_runtime.checkpoint.formats import Role, resolve
from kt_runtime.config import WeightFormat

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
ROLES: tuple[Role, ...] = ("experts", "linear", "embedding", "lm_head", "router")


@pytest.mark.parametrize(
    ("stored", "expected"), [(F32, "float32"), (BF16, "bf16"), (F16, "float32")]
)
def test_native_holds_every_stored_value(stored: torch.dtype, expected: str) -> None:
    for role in ROLES:
        assert resolve("native", role, stored) == ("float32" if role == "router" else expected)


@pytest.mark.parametrize(
    ("weight_format", "experts", "others", "embedding"),
    [
        ("float32", "float32", "float32", "float32"),
        ("bf16", "bf16", "bf16", "bf16"),
        ("int8", "int8", "int8", "bf16"),
        ("int4", "int4", "int8", "bf16"),
    ],
)
@pytest.mark.parametrize("stored", [F32, BF16, F16])
def test_asked_format_counts_whatever_is_stored(
    weight_format: WeightFormat, experts: str, others: str, embedding: str, stored: torch.dtype
) -> None:
    assert resolve(weight_format, "experts", stored) == experts
    assert resolve(weight_format, "linear", stored) == others
    assert resolve(weight_format, "lm_head", stored) == others
    assert resolve(weight_format, "embedding", stored) == embedding
    assert resolve(weight_format, "router", stored) == "float32"


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.int8, torch.float64])
def test_other_stored_dtypes_are_refused_with_the_supported_ones(stored: torch.dtype) -> None:
    with pytest.raises(ValueError, match="one of float32, bfloat16, float16; got"):
        resolve("native", "linear", stored)
