# SPDX-License-Identifier: Apache-2.0
"""Misuse ends in an error: overlapping arrays, impossible sizes, races."""

import contextlib
import threading

import numpy as np
import pytest

from kt_kernel import Experts, Graph, MoE, Stream, ThreadPool, usable_cores

from .cases import MoeCase
from .moe_layer import MoeLayer

F32 = np.float32


def test_an_output_overlaps_no_input(pool, rng):
    stream, x = Stream(pool), rng.standard_normal((2, 8), F32)
    buffer = np.zeros(40, F32)
    first, shifted = buffer[:16].reshape(2, 8), buffer[8:24].reshape(2, 8)
    with pytest.raises(ValueError, match=r"\[add\] out must not overlap x in part"):
        stream.add(first, x, shifted)
    with pytest.raises(ValueError, match=r"\[activate\] out must not overlap up in part"):
        stream.activate(x, shifted, first)
    with pytest.raises(ValueError, match=r"\[rms_norm\] out must not overlap x in part"):
        stream.rms_norm(first, np.ones(8, F32), shifted, eps=1e-6)
    layer = MoeLayer(MoeCase(2, 8, 8, 1, 2), rng)
    moe = layer.moe(layer.pack("int4", pool), pool)
    with pytest.raises(ValueError, match=r"\[moe.forward\] out must not overlap hidden"):
        moe.forward(layer.hidden, layer.topk_ids, layer.topk_weights, layer.hidden)
    q, cache = np.zeros((1, 1, 8), F32), np.zeros((1, 1, 1, 8), F32)
    table, ones = np.zeros((1, 1), np.int32), np.array([1], np.int32)
    with pytest.raises(ValueError, match=r"\[attention\] out must not overlap q"):
        stream.attention(q, cache, cache, table, ones, np.array([0, 1], np.int32), q, scale=1.0)


def test_elementwise_ops_work_in_place(pool, rng):
    x, y = rng.standard_normal((2, 2, 8), F32)
    expected = x + y
    Stream(pool).add(x, y, y)
    assert np.array_equal(y, expected)


@pytest.mark.parametrize("sizes", [(1, 2**30, 2**29), (2**31 - 1, 2**20, 2**20)])
def test_sizes_whose_bytes_would_wrap_are_refused(sizes):
    with pytest.raises(ValueError, match=r"\[experts\] .* must .*; got"):
        Experts.empty(*sizes, gate="float32", up="float32", down="float32")


def test_experts_beyond_memory_say_how_much_they_need():
    with pytest.raises(MemoryError, match=r"\d{13,} bytes do not fit in memory"):
        Experts.empty(10**2, 10**5, 10**6)


def test_pairs_beyond_int32_are_refused(pool, rng):
    layer = MoeLayer(MoeCase(2, 8, 8, 1, 1), rng)
    with pytest.raises(ValueError, match=r"\[moe\] max_tokens \* top_k must lie below 2\^31"):
        MoE(layer.pack("int4", pool), top_k=2**16, max_tokens=2**15, pool=pool)


def test_a_cpu_named_twice_is_refused():
    core = usable_cores()[0]
    with pytest.raises(ValueError, match=rf"cores must name each CPU once; got {core} twice"):
        ThreadPool(cores=[core, core])


def test_recording_during_a_replay_is_refused_or_waits_its_turn(pool):
    graph, x = Graph(pool), np.ones((1, 8), F32)
    graph.add(x, x, np.empty_like(x))
    stop = threading.Event()

    def replay():
        while not stop.is_set():
            with contextlib.suppress(ValueError):  # recording at this moment
                graph.replay()

    thread = threading.Thread(target=replay)
    thread.start()
    recorded = 1
    for _ in range(300):
        with contextlib.suppress(ValueError):
            graph.add(x, x, np.empty_like(x))
            recorded += 1
    stop.set()
    thread.join()
    assert len(graph) == recorded
