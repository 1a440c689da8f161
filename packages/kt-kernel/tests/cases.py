# SPDX-License-Identifier: Apache-2.0
"""Shapes, listed once: small and ragged for the tests, `BENCH_*` for the benchmarks. No arrays."""

from dataclasses import dataclass

FORMATS = ("float32", "bf16", "int8", "int4")
FLOAT_DTYPES = ("float32", "bf16", "f16")
# (format, group size); the float formats have no groups, so any value will do.
FORMAT_GROUPS = (
    ("float32", 32),
    ("bf16", 32),
    *((name, group) for name in ("int8", "int4") for group in (32, 64, 128)),
)

# Around the row blocks of a GEMM (1, 2, 4, 8, 16, 32) and nothing at all.
ROWS = (0, 1, 2, 15, 16, 17, 33)

# (out_features, in_features): one element; no multiple of 8 or 32; just above them; exact; K over
# several groups with a ragged last one.
LINEAR = ((1, 1), (13, 33), (9, 65), (24, 96), (40, 127), (17, 300))


@dataclass(frozen=True)
class MoeCase:
    """One MoE layer and the number of tokens of a call."""

    num_experts: int
    hidden_size: int
    intermediate_size: int
    top_k: int
    num_tokens: int


MOE = (
    MoeCase(1, 32, 32, 1, 1),
    MoeCase(4, 83, 51, 2, 5),
    MoeCase(8, 96, 64, 3, 33),
    MoeCase(5, 33, 130, 5, 17),
    MoeCase(64, 40, 24, 4, 2),  # most experts empty
)


@dataclass(frozen=True)
class AttentionCase:
    """Sequences as (tokens already in the cache, rows of this call)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    sequences: tuple[tuple[int, int], ...]


ATTENTION = (
    AttentionCase(1, 1, 8, 1, ((0, 1),)),
    AttentionCase(4, 2, 16, 4, ((0, 7), (9, 1), (30, 3))),
    AttentionCase(9, 3, 64, 16, ((100, 1), (0, 17), (257, 1))),
    AttentionCase(4, 4, 20, 8, ((3, 5), (0, 1), (15, 2))),  # head_dim no multiple of 8
    AttentionCase(6, 1, 24, 16, ((63, 2), (64, 1), (65, 1))),
)


@dataclass(frozen=True)
class RouteCase:
    """One routing rule."""

    num_experts: int
    top_k: int
    score: str
    bias: bool = False
    num_groups: int = 1
    topk_groups: int = 1
    normalize: bool = True
    scale: float = 1.0


ROUTE = (
    RouteCase(1, 1, "softmax"),
    RouteCase(8, 2, "softmax"),
    RouteCase(60, 4, "softmax", normalize=False),
    RouteCase(128, 8, "softmax", scale=2.5),
    RouteCase(13, 13, "sigmoid"),
    RouteCase(16, 8, "sigmoid", bias=True),
    RouteCase(64, 8, "sigmoid", bias=True, num_groups=8, topk_groups=4, scale=2.5),
    RouteCase(24, 3, "softmax", num_groups=24, topk_groups=5),  # groups of one expert
)

# Big enough to be bound by memory or arithmetic and not by the call, small enough that the whole
# suite takes minutes on two cores.
BENCH_ROWS = (1, 64)
BENCH_LINEAR = (1024, 1024)
BENCH_MOE = MoeCase(8, 512, 384, 2, 64)
BENCH_ATTENTION = AttentionCase(16, 4, 64, 16, ((1023, 1), (511, 1)))
BENCH_ROUTE = RouteCase(128, 8, "sigmoid", bias=True, num_groups=8, topk_groups=4)
