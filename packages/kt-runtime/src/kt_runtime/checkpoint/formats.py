# SPDX-License-Identifier: Apache-2.0
"""The one place that decides which format a matrix is packed to. No packing here."""

from __future__ import annotations

from typing import Literal

import torch

from kt_runtime.config import WeightFormat

Role = Literal["experts", "linear", "embedding", "lm_head", "router"]
PackedFormat = Literal["float32", "bf16", "int8", "int4"]

# "native": the smallest format that holds every stored value. bf16 has three mantissa bits less
# than float16.
NATIVE: dict[torch.dtype, PackedFormat] = {
    torch.float32: "float32",
    torch.bfloat16: "bf16",
    torch.float16: "float32",
}


def resolve(weight_format: WeightFormat, role: Role, stored: torch.dtype) -> PackedFormat:
    """The format of one matrix.

    Routers stay float32: they are small, and a rounded router picks other experts. Embedding tables
    are looked up, not multiplied, so they have no integer format. "int4" keeps int4 for the routed
    experts, nearly all of the bytes, and takes int8 for the rest, where 4 bits cost more quality
    than they save time.

    Args:
        weight_format: what the user asked for.
        role: what the matrix does.
        stored: its dtype in the checkpoint.

    Raises:
        ValueError: `[checkpoint] …` for stored dtypes that no format is defined for.
    """
    if stored not in NATIVE:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in NATIVE)
        raise ValueError(
            f"[checkpoint] weights must be stored as one of {names}; "
            f"got {str(stored).removeprefix('torch.')}"
        )
    if role == "router" or weight_format == "float32":
        return "float32"
    if weight_format == "native":
        return NATIVE[stored]
    if role == "embedding":
        return "bf16"
    if weight_format == "int4" and role != "experts":
        return "int8"
    return weight_format
