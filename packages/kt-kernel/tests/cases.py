# SPDX-License-Identifier: Apache-2.0
"""Shapes, listed once: small and ragged for the tests, `BENCH_*` for the benchmarks. No arrays."""

from dataclasses import dataclass

from kt_kernel import Router

# Weight formats, as the registry lists them.
FORMATS = (
    "float32",
    "bf16",
    "f16",
    "fp8",
    "int8",
    "q8_0",
    "q6_k",
    "q5_k",
    "q4_1",
    "int4_zp",
    "q4_k",
    "int4",
    "q4_0",
    "mxfp4",
)
K_QUANTS = ("q4_k", "q5_k", "q6_k")
GGUF_FORMATS = ("q4_0", "q4_1", "q8_0", *K_QUANTS)
# Those that float weights can be rounded to, and those that already quantised bytes may be in.
ROUNDED = tuple(name for name in FORMATS if name not in ("fp8", *K_QUANTS))
QUANTISED = tuple(name for name in FORMATS if name not in ("float32", "bf16", "f16"))
INTEGER_GROUPS = tuple((name, g) for name in ("int8", "int4", "int4_zp") for g in (32, 64, 128, 0))
# (format, group size); where the format has its own group, any value will do.
FORMAT_GROUPS = (
    *((name, 32) for name in FORMATS if name not in dict(INTEGER_GROUPS)),
    *INTEGER_GROUPS,
)
BENCH_FORMATS = ("float32", "bf16", "int8", "int4")
FLOAT_DTYPES = ("float32", "bf16", "f16")
KV_DTYPES = (*FLOAT_DTYPES, "int8")
# Around the row blocks of a GEMM (1, 2, 4, 8, 16, 32) and nothing at all.
ROWS = (0, 1, 2, 15, 16, 17, 33)

# (out_features, in_features): one element; no multiple of 8 or 32; just above them; exact; K over
# several groups with a ragged last one; whole super-blocks of 256; several tiles of 128.
LINEAR = ((1, 1), (13, 33), (9, 65), (24, 96), (40, 127), (17, 300), (13, 256), (140, 512))


def k_multiple(format: str, quantised: bool = False) -> int:
    """What K of a matrix must be a multiple of: blocks that are given whole."""
    if format in K_QUANTS:
        return 256
    return 32 if quantised and format in (*GGUF_FORMATS, "mxfp4") else 1


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


# Sizes for the K-quants.
MOE_256 = (MoeCase(2, 256, 256, 2, 1), MoeCase(4, 512, 256, 3, 33))


def moe_cases(format: str) -> tuple[MoeCase, ...]:
    return MOE_256 if format in K_QUANTS else MOE


def typical_moe(format: str) -> MoeCase:
    """Several experts with several tokens each."""
    return MOE_256[1] if format in K_QUANTS else MOE[2]


@dataclass(frozen=True)
class AttentionCase:
    """Sequences as (tokens already in the cache, rows of this call)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    sequences: tuple[tuple[int, int], ...]
    window: int = 0
    sinks: bool = False


ATTENTION = (
    AttentionCase(1, 1, 8, 1, ((0, 1),)),
    AttentionCase(4, 2, 16, 4, ((0, 7), (9, 1), (30, 3))),
    AttentionCase(9, 3, 64, 16, ((100, 1), (0, 17), (257, 1))),
    AttentionCase(4, 4, 20, 8, ((3, 5), (0, 1), (15, 2))),  # head_dim no multiple of 8
    AttentionCase(6, 1, 24, 16, ((63, 2), (64, 1), (65, 1))),
    AttentionCase(8, 8, 80, 1, ((0, 33), (62, 3))),
    AttentionCase(16, 1, 96, 16, ((120, 17),), 0, True),
    AttentionCase(5, 1, 128, 7, ((500, 15), (511, 1), (512, 2)), 0, True),  # around a split
    AttentionCase(4, 2, 192, 64, ((0, 16), (1023, 2))),
    AttentionCase(2, 1, 256, 32, ((2, 66),), 0, True),
    AttentionCase(4, 2, 16, 4, ((0, 70), (200, 3)), 1),  # each row sees itself
    AttentionCase(4, 2, 64, 16, ((0, 140), (63, 1), (64, 2), (600, 66)), 64),  # a block of keys
    AttentionCase(3, 1, 40, 5, ((1000, 40), (5, 1)), 513, True),  # wider than a split
)

# Windows and edges for one sequence; head_dim and page size of gpt-oss.
LONG_ATTENTION = (
    AttentionCase(8, 1, 64, 16, ((4095, 1),), 0, True),
    AttentionCase(8, 2, 64, 16, ((4064, 32),), 128, True),
    AttentionCase(3, 3, 128, 16, ((4000, 3),)),
)


@dataclass(frozen=True)
class RouteCase:
    """A routing rule and the sizes it meets."""

    num_experts: int
    top_k: int
    router: Router
    bias: bool = False


ROUTE = {
    "defaults": RouteCase(8, 2, Router()),
    "one expert": RouteCase(1, 1, Router()),
    "bare softmax": RouteCase(60, 4, Router(norm="none")),
    "scaled": RouteCase(128, 8, Router(scale=2.5)),
    "on logits": RouteCase(32, 4, Router(select_on="logit")),
    "on logits, biased": RouteCase(33, 5, Router(select_on="logit"), bias=True),
    "sigmoid of all": RouteCase(13, 13, Router("sigmoid")),
    "sigmoid": RouteCase(16, 8, Router("sigmoid", norm_eps=0.0), bias=True),
    "sigmoid, visible eps": RouteCase(16, 8, Router("sigmoid", norm_eps=0.25), bias=True),
    "grouped": RouteCase(
        64, 8, Router("sigmoid", num_groups=8, topk_groups=4, scale=2.5), bias=True
    ),
    "grouped by max": RouteCase(
        160, 6, Router(num_groups=8, topk_groups=3, group_score="max", norm="none", scale=16.0)
    ),
    "groups of one": RouteCase(24, 3, Router(num_groups=24, topk_groups=5)),
    "sqrtsoftplus": RouteCase(50, 6, Router("sqrtsoftplus", scale=1.5), bias=True),
    "clamped": RouteCase(64, 6, Router(norm="clamp", norm_eps=1e-12), bias=True),
    "clamp that binds": RouteCase(64, 6, Router(norm="clamp", norm_eps=1.5)),
    "one sigmoid": RouteCase(16, 1, Router("sigmoid", "logit", norm="none")),
    "sparsemixer": RouteCase(16, 2, Router("sparsemixer", "logit", norm="none")),
    "wide sparsemixer": RouteCase(13, 4, Router("sparsemixer", "logit", jitter_eps=0.4)),
    "most experts": RouteCase(1024, 12, Router(norm="none", scale=6.0), bias=True),
}

# Big enough to be bound by memory or arithmetic and not by the call, small enough that the whole
# suite takes minutes on two cores.
BENCH_ROWS = (1, 64)
BENCH_LINEAR = (1024, 1024)
BENCH_MOE = MoeCase(8, 512, 384, 2, 64)
BENCH_MOE_FORMATS = (*BENCH_FORMATS, "fp8", "q8_0", "q4_0", "mxfp4")
# The layers that docs/benchmarks.md judges, with as few experts and slots as make a call: the whole
# ones are tools/peers/kernels.py's. Format, sizes, activation; gpt-oss's projections have biases.
BENCH_LAYERS = {
    "qwen3-30b": ("q4_0", MoeCase(16, 2048, 768, 8, 32), "silu"),
    "qwen3-30b in q4_k": ("q4_k", MoeCase(16, 2048, 768, 8, 32), "silu"),
    "qwen3-30b in q6_k": ("q6_k", MoeCase(16, 2048, 768, 8, 32), "silu"),
    "deepseek-v3": ("fp8", MoeCase(4, 7168, 2048, 2, 32), "silu"),
    "gpt-oss": ("mxfp4", MoeCase(8, 2880, 2880, 4, 32), "swigluoai"),
}
BENCH_LAYER_ROWS = (1, 4, 32)
BENCH_ATTENTION = AttentionCase(16, 4, 64, 16, ((1023, 1), (511, 1)))
BENCH_PREFILL = AttentionCase(16, 2, 128, 16, ((0, 256),))
BENCH_WINDOW = AttentionCase(16, 2, 64, 16, ((4095, 1),), 128, True)
BENCH_ROUTE = RouteCase(128, 8, Router("sigmoid", num_groups=8, topk_groups=4), bias=True)
