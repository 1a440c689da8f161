# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at best: memory read bandwidth and multiply peaks, to judge kernels by.

The loops belong to the active target (`kt_kernel.isa`), so forcing another one measures that. They
occupy the pool's threads; anything else that runs meanwhile lowers the figures.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kt_kernel import _core, isa, machine
from kt_kernel.scalars import int32
from kt_kernel.thread_pool import ThreadPool

__all__ = ("Limit", "Limits", "Spread", "kinds", "measure", "peak", "read_bandwidth")

# So much more than the caches that what they keep from pass to pass is below a tenth.
_CACHES_IN_BUFFER = 10
_SHARE_OF_MEMORY = 4  # at most a quarter of what is free
_MIN_SAMPLES = 3  # the fewest that have a median of their own
# A sample of this length hides starting the workers (some 0.1 ms), and many fit a second.
_PEAK_SAMPLE_SECONDS = 0.02
_CALIBRATION_STEPS = 20_000  # below a millisecond at any plausible clock


@dataclass(frozen=True)
class Spread:
    """Rates of repeated samples."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class Limit:
    """One rate, by one thread and by all threads of a pool together."""

    one_thread: Spread
    all_threads: Spread

    @property
    def scaling(self) -> float:
        """Median of all threads over median of one: what a kernel's own scaling is held against."""
        return self.all_threads.median / self.one_thread.median


@dataclass(frozen=True)
class Limits:
    """The limits of one machine for one target.

    A multiplication and an addition count as one operation each. None: the target has no such
    instructions.

    Attributes:
        target: whose loops were measured.
        num_threads: what "all threads" means.
        buffer_bytes: size of the memory that was read; compare it with the caches.
        read_gb_per_s: sequential read of memory like that of weights (same page size), 10^9 bytes.
        fma_gflop_per_s: float32 fused multiply-add.
        maddubs_madd_gop_per_s: int8 products summed to int32 at once (vpmaddubsw, vpmaddwd,
            vpaddd).
        maddubs_add_gop_per_s: int8 products summed in int16 (vpmaddubsw, vpaddw).
        dpbusd_gop_per_s: int8 products summed to int32 in one instruction (vpdpbusd).
    """

    target: str
    num_threads: int
    buffer_bytes: int
    read_gb_per_s: Limit
    fma_gflop_per_s: Limit | None
    maddubs_madd_gop_per_s: Limit | None
    maddubs_add_gop_per_s: Limit | None
    dpbusd_gop_per_s: Limit | None


def kinds() -> list[str]:
    """Kinds of multiply that `peak` can measure on the active target, such as "fma"."""
    return list(_core.peak_kinds())


def measure(pool: ThreadPool, seconds: float = 10) -> Limits:
    """Measure all limits, in turns, so that a disturbance falls on all of them.

    Args:
        pool: whose threads work. One-thread figures come from its first thread.
        seconds: how long, filling the buffer included; at least three samples of each are taken.

    Raises:
        ValueError: `seconds` is not a positive number.
        MemoryError: the buffer does not fit.
    """
    deadline = _deadline("probe.measure", seconds)
    buffer = _core.ReadProbe(pool._core, _buffer_bytes())
    threads = (1, pool.num_threads)
    names = kinds()
    samples = [_read_sample(buffer, count) for count in threads]
    samples += [_peak_sample(pool, kind, count) for kind in names for count in threads]
    spreads = _spreads(samples, deadline)
    read, *peaks = (Limit(*spreads[i : i + 2]) for i in range(0, len(spreads), 2))
    by_kind = dict(zip(names, peaks, strict=True))
    return Limits(
        target=isa.active(),
        num_threads=pool.num_threads,
        buffer_bytes=buffer.nbytes,
        read_gb_per_s=read,
        fma_gflop_per_s=by_kind.get("fma"),
        maddubs_madd_gop_per_s=by_kind.get("maddubs_madd"),
        maddubs_add_gop_per_s=by_kind.get("maddubs_add"),
        dpbusd_gop_per_s=by_kind.get("dpbusd"),
    )


def read_bandwidth(
    pool: ThreadPool,
    *,
    threads: int | None = None,
    nbytes: int | None = None,
    seconds: float = 0.5,
) -> Spread:
    """Rate of reading memory like that of weights, in 10^9 bytes per second.

    Args:
        pool: whose threads read, each a contiguous part.
        threads: how many of them; None: all.
        nbytes: size of the buffer; None: ten times the outermost caches, at most a quarter of the
            free memory.
        seconds: how long, filling the buffer included; at least three passes are made.

    Raises:
        ValueError: an argument out of range.
        MemoryError: the buffer does not fit.
    """
    deadline = _deadline("probe.read_bandwidth", seconds)
    size = _buffer_bytes() if nbytes is None else nbytes
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"[probe.read_bandwidth] nbytes must be a positive integer; got {nbytes}")
    count = pool.num_threads if threads is None else int32("probe.read", "threads", threads)
    return _spreads([_read_sample(_core.ReadProbe(pool._core, size), count)], deadline)[0]


def peak(
    pool: ThreadPool, kind: str, *, threads: int | None = None, seconds: float = 0.2
) -> Spread:
    """Rate of one kind of multiply, in 10^9 operations (two per multiply-add) per second.

    Args:
        pool: whose threads work.
        kind: one of `kinds()`.
        threads: how many of them; None: all.
        seconds: how long; at least three samples are taken.

    Raises:
        ValueError: an argument out of range, or a kind that the active target does not have.
    """
    deadline = _deadline("probe.peak", seconds)
    count = pool.num_threads if threads is None else int32("probe.peak", "threads", threads)
    return _spreads([_peak_sample(pool, kind, count)], deadline)[0]


_Sample = Callable[[], float]  # one rate in 10^9 per second


def _read_sample(buffer: _core.ReadProbe, threads: int) -> _Sample:
    return lambda: buffer.nbytes / buffer.seconds(threads) / 1e9


def _peak_sample(pool: ThreadPool, kind: str, threads: int) -> _Sample:
    calibration = _core.peak_seconds(pool._core, kind, threads, _CALIBRATION_STEPS)
    steps = max(1, round(_CALIBRATION_STEPS * _PEAK_SAMPLE_SECONDS / calibration))
    operations = threads * steps * _core.peak_ops(kind)
    return lambda: operations / _core.peak_seconds(pool._core, kind, threads, steps) / 1e9


def _spreads(samples: Sequence[_Sample], deadline: float) -> list[Spread]:
    """Take the samples in turns until the deadline."""
    rates: list[list[float]] = [[] for _ in samples]
    while len(rates[0]) < _MIN_SAMPLES or time.monotonic() < deadline:
        for sample, rate in zip(samples, rates, strict=True):
            rate.append(sample())
    return [_spread(sorted(rate)) for rate in rates]


def _spread(ordered: Sequence[float]) -> Spread:
    return Spread(ordered[0], ordered[len(ordered) // 2], ordered[-1])


def _deadline(op: str, seconds: float) -> float:
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"[{op}] seconds must be a positive number; got {seconds}")
    return time.monotonic() + seconds


def _buffer_bytes() -> int:
    wanted = _CACHES_IN_BUFFER * machine.last_level_cache_bytes()
    free = machine.available_memory_bytes()
    return min(wanted, free // _SHARE_OF_MEMORY) if free else wanted
