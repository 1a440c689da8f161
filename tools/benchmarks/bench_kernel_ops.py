# SPDX-License-Identifier: Apache-2.0
"""kt-kernel: every op of Stream by weight format or element type, replay, and packing; not MoE."""

import numpy as np

from kt_kernel import Graph, Linear
from kt_kernel.formats import FORMATS
from kt_kernel.known_weights import known_weights

from .inputs import (
    CpuTime,
    Paged,
    Warm,
    cases,
    make_pool,
    make_stream,
    normal,
    pack_linear,
    rng,
    stored,
)

F32, I32 = np.float32, np.int32
# 64 tokens of a small model: 256 KiB, inside the second-level cache on every machine.
TOKENS, HIDDEN = 64, 1024


class Embedding(CpuTime):
    params = cases.FLOAT_DTYPES
    param_names = ("dtype",)

    def prepare(self, dtype):
        self.stream = make_stream()
        self.weight = stored(normal(4096, HIDDEN), dtype)
        self.ids = np.arange(0, 4096, 4096 // TOKENS, dtype=I32)
        self.out = np.empty((TOKENS, HIDDEN), F32)

    def time_embedding(self, dtype):
        self.stream.embedding(self.ids, self.weight, self.out, dtype=dtype)


class EmbeddingOfBlocks(CpuTime):
    params = cases.K_QUANTS
    param_names = ("format",)

    def prepare(self, format):
        self.stream = make_stream()
        self.weight = known_weights(FORMATS[format], rng(), 4096, HIDDEN).weight
        self.ids = np.arange(0, 4096, 4096 // TOKENS, dtype=I32)
        self.out = np.empty((TOKENS, HIDDEN), F32)

    def time_embedding(self, format):
        self.stream.embedding(self.ids, self.weight, self.out, format=format)


class Elementwise(CpuTime):
    def prepare(self):
        self.stream = make_stream()
        self.x, self.y = normal(TOKENS, HIDDEN), normal(TOKENS, HIDDEN)
        self.weight, self.out = normal(HIDDEN), np.empty((TOKENS, HIDDEN), F32)

    def time_rms_norm(self):
        self.stream.rms_norm(self.x, self.weight, self.out, eps=1e-6)

    def time_activate(self):
        self.stream.activate(self.x, self.y, self.out)

    def time_add(self):
        self.stream.add(self.x, self.y, self.out)


class LinearOp(CpuTime):
    params = (cases.BENCH_FORMATS, cases.BENCH_ROWS)
    param_names = ("format", "num_tokens")

    def prepare(self, format, num_tokens):
        self.stream = make_stream()
        self.linear = pack_linear(format, make_pool())
        self.x = normal(num_tokens, self.linear.in_features)
        self.out = np.empty((num_tokens, self.linear.out_features), F32)

    def time_linear(self, format, num_tokens):
        self.stream.linear(self.x, self.linear, self.out)


class PackLinear(CpuTime):
    params = cases.BENCH_FORMATS
    param_names = ("format",)

    def prepare(self, format):
        self.weight, self.pool = normal(*cases.BENCH_LINEAR), make_pool()

    def time_pack(self, format):
        Linear.pack(self.weight, format=format, pool=self.pool)


class KvCache(CpuTime):
    params = cases.KV_DTYPES
    param_names = ("dtype",)

    def prepare(self, dtype):
        self.stream, self.paged = make_stream(), Paged(dtype)

    def time_attention(self, dtype):
        self.paged.attend(self.stream)

    def time_rope_write_kv(self, dtype):
        self.paged.write(self.stream)


class Attention(CpuTime):
    params = (cases.KV_DTYPES, ("prefill", "window"))
    param_names = ("dtype", "case")

    def prepare(self, dtype, case):
        shape = {"prefill": cases.BENCH_PREFILL, "window": cases.BENCH_WINDOW}[case]
        self.stream, self.paged = make_stream(), Paged(dtype, shape)

    def time_attention(self, dtype, case):
        self.paged.attend(self.stream)


class Route(CpuTime):
    def prepare(self):
        case = cases.BENCH_ROUTE
        self.stream, self.logits = make_stream(), normal(TOKENS, case.num_experts)
        self.bias = normal(case.num_experts)
        self.ids = np.empty((TOKENS, case.top_k), I32)
        self.weights = np.empty((TOKENS, case.top_k), F32)

    def time_route(self):
        self.stream.route(
            self.logits, self.ids, self.weights, cases.BENCH_ROUTE.router, bias=self.bias
        )


class Replay(Warm):
    """What an op costs beyond its arithmetic: a hundred additions of one row each. Wall time."""

    def prepare(self):
        x, out = normal(1, 64), np.empty((1, 64), F32)
        self.graph = Graph(make_pool(), np.ones(1, I32))
        for _ in range(100):
            self.graph.add(x, x, out)

    def time_replay_of_100_small_ops(self):
        self.graph.replay()
