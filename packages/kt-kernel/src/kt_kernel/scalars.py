# SPDX-License-Identifier: Apache-2.0
"""Checks numbers on their way to the core, whose sizes and indices are int32 and whose other
numbers are float32. Not for arrays.
"""

import operator

import numpy as np

__all__ = ("float32", "int32")


def float32(op: str, name: str, value: object) -> float:
    """Return `value` as the core will have it: rounded to float32, where it may be 0 or infinite.

    Args:
        op: op name for the error, e.g. "activation".
        name: argument name for the error.
        value: a real number.

    Raises:
        ValueError: not a number.
    """
    try:
        if isinstance(value, (str, bytes, bytearray)):  # which float() would read
            raise TypeError
        with np.errstate(over="ignore"):
            return float(np.float32(float(value)))  # type: ignore[arg-type]  # the question asked
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"[{op}] {name} must be a number; got {value!r}") from None


def int32(op: str, name: str, value: object) -> int:
    """Return `value` as an int that the core can take; what range makes sense is for the core.

    Args:
        op: op name for the error, e.g. "moe".
        name: argument name for the error.
        value: an int or another integer type, such as numpy's.

    Raises:
        ValueError: not an integer, or outside [-2^31, 2^31).
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # the question asked here
    except TypeError:
        raise ValueError(f"[{op}] {name} must be an integer; got {value!r}") from None
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"[{op}] {name} must lie below 2^31; got {number}")
    return number
