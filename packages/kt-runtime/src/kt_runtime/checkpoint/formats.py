# SPDX-License-Identifier: Apache-2.0
"""The one place that decides which format a matrix is packed to. No packing here."""

from __future__ import annotations

from typing import Literal

from kt_runtime.config import WeightFormat

Role = Literal["experts", "linear", "embedding", "lm_head", "router"]

FLOATS = ("float32", "bf16", "f16")
# Blocks of GGUF files, which the kernels take as they are.
BLOCKS = ("q4_0", "q4_1", "q8_0", "q4_k", "q5_k", "q6_k")


def resolve(weight_format: WeightFormat, role: Role, stored: str) -> str:
    """The format of one matrix, by kt_kernel's name.

    Routers stay float32: they are small, and a rounded router picks other experts. Embedding tables
    are looked up, not multiplied, and stay as they are stored: a step reads a few of their rows.
    "int4" keeps int4 for the routed experts, nearly all of the bytes, and takes int8 for the rest,
    where 4 bits cost more quality than they save time.

    Args:
        weight_format: what the user asked for.
        role: what the matrix does.
        stored: how the checkpoint has it.

    Raises:
        ValueError: `[checkpoint] …` for stored formats that are no weights.
    """
    if stored not in FLOATS + BLOCKS:
        raise ValueError(
            f"[checkpoint] weights must be stored as one of {', '.join(FLOATS + BLOCKS)}; "
            f"got {stored}"
        )
    if role == "embedding":
        return stored
    if role == "router" or weight_format == "float32":
        return "float32"
    if weight_format == "native":
        return stored
    if weight_format == "int4" and role != "experts":
        return "int8"
    return weight_format


def common(stored: set[str]) -> str:
    """The one format that holds every value stored in these: itself, or float32 for several."""
    return next(iter(stored)) if len(stored) == 1 else "float32"
