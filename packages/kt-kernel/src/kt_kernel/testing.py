# SPDX-License-Identifier: Apache-2.0
"""Fault injection: proves that a result comes through a kernel. For tests, never for production."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from kt_kernel import _core

__all__ = ("negated",)

_one_kernel = Lock()  # the core has room for one


@contextmanager
def negated(kernel: str) -> Iterator[None]:
    """While active, `kernel` negates what it writes, on every target and in the whole process.

    If an engine's output does not change inside this context, it did not use the kernel.

    Args:
        kernel: one of `kt_kernel.isa.kernels()`.

    Raises:
        ValueError: unknown kernel, or another one is negated.
    """
    if not _one_kernel.acquire(blocking=False):
        raise ValueError(f"[testing.negated] one kernel at a time; got {kernel} beside another")
    try:
        _core.negate_kernel(kernel)
        yield
    finally:
        _core.negate_kernel("")
        _one_kernel.release()
