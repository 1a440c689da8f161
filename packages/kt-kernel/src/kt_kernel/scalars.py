# SPDX-License-Identifier: Apache-2.0
"""Checks numbers on their way to the core, whose sizes and indices are int32. Not for arrays."""

import operator

__all__ = ("int32",)


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
