# SPDX-License-Identifier: Apache-2.0
"""Which instruction set the kernels use: chosen once, from the CPU or `KT_ISA`, never by timing.

A target is a whole table of kernels compiled for one instruction set ("scalar", "avx2", …). The
active target is the one process-wide setting of this library: a process has one kind of CPU.
"""

from kt_kernel import _core

__all__ = ("active", "available", "compiled", "force", "kernels", "matrix")


def available() -> list[str]:
    """Targets that this CPU and operating system can run, best first, emulated ones last."""
    return list(_core.available_targets())


def compiled() -> list[str]:
    """Targets that this build contains, best first. A superset of `available()`."""
    return list(_core.compiled_targets())


def active() -> str:
    """The target in use: the best available one, unless `KT_ISA` or `force` said otherwise.

    Raises:
        ValueError: `KT_ISA` names a target that is not available.
    """
    return _core.active_target()


def force(name: str) -> None:
    """Use the target `name` from the next op on. Call it between ops: one that runs meanwhile in
    another thread may use both targets.

    Results of the integer formats are the same bits on every target with fma (all but "scalar",
    which agrees within rounding); float formats agree within rounding.

    Raises:
        ValueError: not one of `available()`, which the message lists.
    """
    _core.force_target(name)


def kernels() -> list[str]:
    """Names of the kernels that every target implements, in table order."""
    return list(_core.kernel_names())


def matrix() -> dict[str, dict[str, str | None]]:
    """Whose code runs: `matrix()[kernel][target]` is `target` itself where its kernel is native,
    the lesser target that it inherits the kernel from, or None where it has none.
    """
    return {
        kernel: {target: _core.kernel_owner(target, kernel) or None for target in compiled()}
        for kernel in kernels()
    }
