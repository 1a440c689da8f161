# SPDX-License-Identifier: Apache-2.0
"""Inputs of the kernel benchmarks: seeded arrays of the shapes in kt-kernel's tests/cases.py.

Results of different commits are comparable only if these stay: add shapes, do not change them.
"""

import functools
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from kt_kernel import Experts, Linear, MoE, Stream, ThreadPool
from kt_kernel.formats import FORMATS
from kt_kernel.known_weights import known_weights
from kt_kernel.ops import Ops

F32, I32 = np.float32, np.int32


def _load_cases() -> ModuleType:
    path = Path(__file__).parents[2] / "packages" / "kt-kernel" / "tests" / "cases.py"
    spec = importlib.util.spec_from_file_location("kt_kernel_cases", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


cases = _load_cases()


def _prepared(time_function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(time_function)
    def call(self: "Warm", *params: object) -> None:
        if self.prepared_for != params:
            self.prepare(*params)
            self.prepared_for = params
        time_function(self, *params)

    return call


class Warm:
    """Base of the benchmarks: `prepare(*params)` before the first call, then calls on warm state.

    asv runs a method named `setup` before every single timed call (asv_runner 0.3), and one call on
    cold caches, whose threads just started, varies by more than the 20 % that shall be seen.
    """

    prepared_for: tuple[object, ...] | None = None
    # Samples of 50 ms hold hundreds of calls, so that one preemption (4 ms) cannot look like a
    # slowdown; two rounds of up to 20 samples let asv's test tell 20 % from noise.
    sample_time = 0.05
    rounds = 2
    repeat = (10, 20, 2.0)

    def __init_subclass__(cls) -> None:
        for name, attribute in list(vars(cls).items()):
            if name.startswith("time_"):
                setattr(cls, name, _prepared(attribute))


class CpuTime(Warm):
    """Base of the benchmarks of arithmetic: CPU time of the process, whatever else is running.

    On a busy two-core machine wall time varies tenfold; CPU time shows a slowdown of 20 %. What CPU
    time cannot see (waiting, waking) is measured by the benchmarks without this base.
    """

    timer = time.process_time


def make_pool() -> ThreadPool:
    """One thread: several would measure their neighbours and the barrier between them as well."""
    return ThreadPool(1)


def rng() -> np.random.Generator:
    """The same numbers for every benchmark."""
    return np.random.default_rng(20250101)


def normal(*shape: int) -> np.ndarray:
    """Standard normal float32."""
    return rng().standard_normal(shape, F32)


def stored(x: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 as memory of an element type, cut off, which is as good for timing."""
    if dtype == "bf16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    if dtype == "int8":
        return (x * 25).clip(-127, 127).astype(np.int8)
    return x.astype({"float32": F32, "f16": np.float16}[dtype])


def pack_linear(format: str, pool: ThreadPool) -> Linear:
    """A matrix of BENCH_LINEAR's shape."""
    return Linear.pack(normal(*cases.BENCH_LINEAR), format=format, pool=pool)


class Layer:
    """A packed MoE layer with tokens and routing; every expert has the same weights."""

    def __init__(
        self,
        format: str,
        case: "cases.MoeCase",
        num_tokens: int,
        activation: str = "silu",
        biases: bool = False,
    ):
        self.pool = make_pool()
        sizes = case.intermediate_size, case.hidden_size
        self.experts = Experts.empty(
            case.num_experts, case.hidden_size, sizes[0], gate=format, up=format, down=format
        )
        wide = known_weights(FORMATS[format], rng(), *sizes)
        tall = known_weights(FORMATS[format], rng(), *reversed(sizes))
        for name, weights in (("gate", wide), ("up", wide), ("down", tall)):
            for expert in range(case.num_experts):
                self.experts.put(expert, name, weights.weight, scales=weights.scales)
            if biases:
                self.experts.put_bias(name, normal(case.num_experts, len(weights.weight)))
        self.moe = MoE(
            self.experts,
            top_k=case.top_k,
            activation=activation,
            max_tokens=num_tokens,
            pool=self.pool,
        )
        ids = [rng().permutation(case.num_experts)[: case.top_k] for _ in range(num_tokens)]
        self.out = np.empty((num_tokens, case.hidden_size), F32)
        self.call = (
            normal(num_tokens, case.hidden_size),
            np.array(ids, I32),
            np.full((num_tokens, case.top_k), 0.5, F32),
            self.out,
        )


class Paged:
    """Sequences in pages of random order, and a query or more of each."""

    def __init__(self, dtype: str, case: "cases.AttentionCase" = cases.BENCH_ATTENTION):
        lengths = np.array([cached + rows for cached, rows in case.sequences], I32)
        rows = [rows for _, rows in case.sequences]
        pages = -(-int(lengths.max()) // case.page_size)
        shape = (pages * len(rows), case.page_size, case.num_kv_heads, case.head_dim)
        self.dtype = dtype
        self.caches = stored(normal(*shape), dtype), stored(normal(*shape), dtype)
        self.scales = tuple(
            np.full(shape[:3], 0.04, F32) if dtype == "int8" else None for _ in range(2)
        )
        self.window, self.sinks = case.window, normal(case.num_heads) if case.sinks else None
        self.q = normal(sum(rows), case.num_heads, case.head_dim)
        self.kv = normal(sum(rows), case.num_kv_heads, case.head_dim)
        self.out = np.empty_like(self.q)
        self.table = rng().permutation(shape[0]).astype(I32).reshape(len(rows), pages)
        self.seq_lens = lengths
        self.cu_seqlens_q = np.cumsum([0, *rows]).astype(I32)
        self.positions = lengths - 1
        angle = normal(2048, case.head_dim // 2)
        self.cos, self.sin = np.cos(angle), np.sin(angle)

    def attend(self, ops: Ops) -> None:
        """The attention op."""
        ops.attention(
            self.q,
            *self.caches,
            self.table,
            self.seq_lens,
            self.cu_seqlens_q,
            self.out,
            scale=0.125,
            window=self.window,
            sinks=self.sinks,
            k_scales=self.scales[0],
            v_scales=self.scales[1],
            dtype=self.dtype,
        )

    def write(self, ops: Ops) -> None:
        """The op that rotates q and k and writes k and v to slots 0, 1, ..."""
        slots = np.arange(len(self.q), dtype=I32)
        ops.rope_write_kv(
            self.q,
            self.kv,
            self.kv,
            self.cos,
            self.sin,
            self.positions,
            slots,
            *self.caches,
            k_scales=self.scales[0],
            v_scales=self.scales[1],
            dtype=self.dtype,
        )


def make_stream() -> Stream:
    """A stream on a pool of its own."""
    return Stream(make_pool())
