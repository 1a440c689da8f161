# SPDX-License-Identifier: Apache-2.0
"""Fault injection: proves that a result comes through a kernel. For tests, never for production."""

from collections.abc import Iterator
from contextlib import contextmanager

from kt_kernel import _core

__all__ = ("negated",)


@contextmanager
def negated(kernel: str) -> Iterator[None]:
    """While active, `kernel` negates what it writes, on every target and in the whole process.

    If an engine's output does not change inside this context, it did not use the kernel.

    Args:
        kernel: one of `kt_kernel.isa.kernels()`.

    Raises:
        ValueError: unknown kernel.
    """
    _core.negate_kernel(kernel)
    try:
        yield
    finally:
        _core.negate_kernel("")
