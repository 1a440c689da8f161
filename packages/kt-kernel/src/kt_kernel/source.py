# SPDX-License-Identifier: Apache-2.0
"""Weights as a caller has them: floats, or bytes that are already quantised. No packing here."""

import sys
from typing import Any, NamedTuple

import numpy as np

from kt_kernel.arrays import typed

__all__ = ("Source", "source_of")

# Element types whose bytes are quantised weights, whatever format they are for.
_BYTES = ("uint8", "int8", "float8_e4m3fn")


class Source(NamedTuple):
    """One weight matrix as the core takes it."""

    weight: Any
    dtype: str
    scales: Any
    zeros: Any


def source_of(
    op: str, weight: object, scales: object | None, zeros: object | None, dtype: str | None
) -> Source:
    """Tell float weights from quantised ones, sharing their memory.

    Args:
        op: op name for the error.
        weight: float32, bf16 or f16; or uint8, int8 or float8_e4m3fn bytes.
        scales: with bytes, what the format's scales are: float32 (bf16 and f16 are converted), or
            uint8 exponents.
        zeros: with bytes, uint8 zero points.
        dtype: "bf16" if `weight` is bare uint16 bits.

    Raises:
        ValueError: the element type is none of these.
    """
    element = str(getattr(weight, "dtype", "")).removeprefix("torch.")
    if element not in _BYTES:
        return Source(*typed(op, "weight", weight, dtype), scales, zeros)
    return Source(_as_bytes(weight), "quantized", _as_scales(op, scales), zeros)


def _as_bytes(array: Any) -> Any:
    if str(array.dtype).startswith("torch."):
        return array.view(sys.modules["torch"].uint8)  # the caller has it
    return array.view(np.uint8)


def _as_scales(op: str, scales: Any) -> Any:
    if scales is None or str(getattr(scales, "dtype", "")).endswith("uint8"):
        return scales
    array, element = typed(op, "scales", scales)
    if element == "float32":
        return array
    if element == "bf16" and isinstance(array, np.ndarray):
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if isinstance(array, np.ndarray) else array.float()
