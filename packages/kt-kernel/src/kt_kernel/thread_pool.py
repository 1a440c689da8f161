# SPDX-License-Identifier: Apache-2.0
"""The worker threads that all compute runs on. Owned by the caller; there is no global pool."""

import os
from collections.abc import Sequence

from kt_kernel import _core
from kt_kernel.scalars import int32

__all__ = ("ThreadPool", "usable_cores")


def usable_cores() -> tuple[int, ...]:
    """CPU ids to pin a pool to: one of each physical core that this process may use.

    As many as a pool has threads by default: what CPU affinity (of the calling thread) and the
    cgroup quota (v1 or v2) leave, in the order of memory nodes and spread over them. With
    `ThreadPool(cores=usable_cores())` every thread has a core of its own: right for a process that
    has the machine to itself. Where it shares the cores, unpinned threads step around the others.
    """
    return tuple(_core.usable_cores(_core.allowed_cpus()))


def _threads_from_environment() -> int:
    """KT_THREADS, or 0 where it is unset: the core then counts usable physical cores."""
    text = os.environ.get("KT_THREADS", "").strip()  # noqa: TID251  # the one function that may
    if not text:
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"[thread_pool] KT_THREADS must be a positive integer; got {text!r}")
    return int(text)


class ThreadPool:
    """Threads that run ops together. They sleep while there is nothing to do.

    Args:
        num_threads: how many; None means one per core in `cores`, else KT_THREADS if set, else the
            physical cores that CPU affinity and the cgroup quota leave to this process.
        cores: CPU ids to pin the threads to, one each (see `usable_cores`). None leaves them to the
            system: anywhere in the affinity mask, with several memory nodes within one node each.

    On several memory nodes a pool splits the columns of an op, hence of the weights that it packed,
    among the nodes, so that threads read near memory; a node that is done helps the others.

    Thread-safe: jobs of several callers queue and finish in order. Results never depend on the
    number of threads. A forked child must make its own pool: using its parent's is a RuntimeError.

    Raises:
        ValueError: a count below 1, a core that does not exist, or one named twice.
    """

    def __init__(self, num_threads: int | None = None, cores: Sequence[int] | None = None) -> None:
        # Not by truth: an array of the one core 0 is false.
        cores = () if cores is None else tuple(cores)
        if num_threads is None:
            num_threads = len(cores) if cores else _threads_from_environment()
        elif int32("thread_pool", "num_threads", num_threads) < 1:
            raise ValueError(f"[thread_pool] num_threads must be at least 1; got {num_threads}")
        self._core = _core.ThreadPool(
            int32("thread_pool", "num_threads", num_threads),
            [int32("thread_pool", "cores", core) for core in cores],
        )

    @property
    def num_threads(self) -> int:
        """Number of threads that compute."""
        return self._core.num_threads

    def op_counts(self) -> dict[str, int]:
        """How often each op ran on this pool since it was made: `{"attention": 120, ...}`."""
        return dict(self._core.op_counts())

    def __repr__(self) -> str:
        return f"ThreadPool(num_threads={self.num_threads})"
