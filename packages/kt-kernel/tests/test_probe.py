# SPDX-License-Identifier: Apache-2.0
"""Limits: plausible, complete, refused on bad input. Never judged by a speed."""

import dataclasses
import math

import pytest

from kt_kernel import ThreadPool, isa, machine, probe
from kt_kernel.probe import Limit, Spread

MEBIBYTE = 1 << 20


def assert_plausible(spread: Spread) -> None:
    assert 0 < spread.min <= spread.median <= spread.max
    assert math.isfinite(spread.max)


def test_measure_fills_every_limit_that_the_target_has(target, pool):
    limits = probe.measure(pool, seconds=0.1)
    assert limits.target == target
    assert limits.num_threads == pool.num_threads
    assert 0 < limits.buffer_bytes <= machine.available_memory_bytes() / 2
    measured = {
        field.name: value
        for field in dataclasses.fields(limits)
        if isinstance(value := getattr(limits, field.name), Limit)
    }
    assert len(measured) == 1 + len(probe.kinds())
    assert all(any(name.startswith(kind) for name in measured) for kind in probe.kinds())
    for limit in measured.values():
        assert_plausible(limit.one_thread)
        assert_plausible(limit.all_threads)
        assert limit.scaling == limit.all_threads.median / limit.one_thread.median
        # Threads may share a core, and others the machine; but they do not undo each other's work.
        assert limit.all_threads.max > 0.3 * limit.one_thread.max


def test_the_vector_target_multiplies_faster_than_the_memory_brings_operands(pool):
    """Two float operands of 4 bytes per multiply-add: only loops on registers reach this."""
    if not probe.kinds():
        pytest.skip("the active target measures no multiply")
    read = probe.read_bandwidth(pool, threads=1, seconds=0.2)
    assert probe.peak(pool, "fma", threads=1).max > read.max / 4


def test_a_buffer_in_the_cache_is_read_faster_than_memory_or_as_fast(pool):
    small = probe.read_bandwidth(pool, threads=1, nbytes=MEBIBYTE // 4, seconds=0.2)
    large = probe.read_bandwidth(pool, threads=1, seconds=0.5)
    assert small.max > large.median


@pytest.mark.parametrize("nbytes", [1, 511, 513, 3 * MEBIBYTE + 1])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_ragged_buffers_are_read_whole_by_any_number_of_threads(target, nbytes, threads):
    """The core compares a checksum of what was written with what each pass read."""
    assert_plausible(
        probe.read_bandwidth(ThreadPool(3), threads=threads, nbytes=nbytes, seconds=0.001)
    )


@pytest.mark.parametrize("threads", [0, 3, -1])
def test_thread_counts_beyond_the_pool_are_refused(pool, threads):
    rule = rf"threads must lie between 1 and the pool's 2; got {threads}"
    with pytest.raises(ValueError, match=rf"\[probe.read\] {rule}"):
        probe.read_bandwidth(pool, threads=threads, nbytes=MEBIBYTE)
    for kind in probe.kinds():
        with pytest.raises(ValueError, match=rf"\[probe.peak\] {rule}"):
            probe.peak(pool, kind, threads=threads)


def test_unknown_kinds_are_refused_and_the_known_ones_listed(target, pool):
    known = ", ".join(probe.kinds())
    with pytest.raises(ValueError, match=rf"one of \({known}\) on target {target}; got warp$"):
        probe.peak(pool, "warp")


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_durations_must_be_positive_and_finite(pool, seconds):
    with pytest.raises(ValueError, match="seconds must be a positive number"):
        probe.measure(pool, seconds)


@pytest.mark.parametrize("nbytes", [0, -1, 1.5])
def test_buffer_sizes_must_be_positive_integers(pool, nbytes):
    with pytest.raises(ValueError, match="nbytes must be a positive integer"):
        probe.read_bandwidth(pool, nbytes=nbytes)


def test_a_buffer_beyond_the_address_space_is_refused(pool):
    with pytest.raises(ValueError, match=r"\[probe.read\] bytes must lie between"):
        probe.read_bandwidth(pool, nbytes=1 << 60)


def test_targets_with_vpdpbusd_measure_it(target):
    has = target in ("avx_vnni", "avx512_vnni", "avx512_bf16", "amx")
    assert ("dpbusd" in probe.kinds()) == has


def test_the_best_target_measures_float_and_integer_peaks():
    if isa.available()[0] == "scalar":
        pytest.skip("no vector target on this CPU")
    assert {"fma", "maddubs_madd", "maddubs_add"} <= set(probe.kinds())
