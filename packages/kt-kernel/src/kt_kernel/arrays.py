# SPDX-License-Identifier: Apache-2.0
"""Tells the element type of arrays that may be float32, bf16 or f16. Never copies or imports torch.

The core takes any CPU array with `__dlpack__` (torch, numpy, others) and checks shape, layout and
device; but numpy's bfloat16 (ml_dtypes) has no DLPack, and bare 16-bit integers need a declaration.
"""

import functools
from typing import Any

import numpy as np

__all__ = ("FLOATS", "KV_ELEMENTS", "typed")

FLOATS = ("float32", "bf16", "f16")
"""The element types of activations, weights and caches."""

KV_ELEMENTS = (*FLOATS, "int8")
"""The element types of key-value caches."""

# Names of numpy, ml_dtypes and torch -> ours. Others keep their name, for the error message.
_NAMES = {"bfloat16": "bf16", "float16": "f16"}


@functools.lru_cache
def _numpy_element(dtype: np.dtype[Any]) -> str:
    # Kept, because numpy takes 4 us to name a dtype, a hundredth of a small layer.
    name = str(dtype)
    return _NAMES.get(name, name)


def _element(value: object) -> str:
    """The element type of a numpy array or torch tensor; "" of anything else."""
    if isinstance(value, np.ndarray):
        return _numpy_element(value.dtype)
    # Told by the name: numpy cannot hold a bfloat16 tensor.
    library, _, name = str(getattr(value, "dtype", "")).partition("torch.")
    return "" if library else _NAMES.get(name, name)


def typed(
    op: str,
    name: str,
    value: object,
    dtype: str | None = None,
    elements: tuple[str, ...] = FLOATS,
) -> tuple[Any, str]:
    """Return what the core takes for an array, sharing its memory, and its element type.

    Args:
        op: op name for the error, e.g. "moe.forward".
        name: argument name for the error.
        value: torch tensor, numpy array (ml_dtypes.bfloat16 too) or another DLPack producer.
        dtype: "bf16" declares that a bare uint16 array holds bfloat16 bits.
        elements: the element types that the argument may have.

    Raises:
        ValueError: not an array, or its elements are none of `elements`, or uint16 without `dtype`.
    """
    if dtype is not None and dtype not in elements:
        raise ValueError(f"[{op}] dtype must be one of {', '.join(elements)}; got {dtype!r}")
    array: Any = value
    element = _element(array)
    if not element:
        array = _imported(op, name, array, elements)
        element = _element(array)
    if element == "uint16" and dtype == "bf16":
        return array, "bf16"
    if element not in elements:
        hint = ' (bfloat16 bits need dtype="bf16")' if element == "uint16" else ""
        got = f"{element} {tuple(array.shape)}"
        raise ValueError(f"{_rule(op, name, elements)}{hint}; got {got}")
    if element == "bf16" and isinstance(array, np.ndarray):
        array = array.view(np.uint16)
    return array, element


def _rule(op: str, name: str, elements: tuple[str, ...]) -> str:
    # Composed only for an error: calls of microseconds come through `typed`.
    return f"[{op}] {name} must be an array of {', '.join(elements)}"


def _imported(op: str, name: str, value: Any, elements: tuple[str, ...]) -> Any:
    """Another library's array as numpy's."""
    got = type(value).__name__
    if not hasattr(value, "__dlpack__"):
        raise ValueError(f"{_rule(op, name, elements)}; got {got}")
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{_rule(op, name, elements)} on the CPU; got {got}: {error}") from error
