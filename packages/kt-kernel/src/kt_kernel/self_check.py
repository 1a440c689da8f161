# SPDX-License-Identifier: Apache-2.0
"""Small runs of every op and weight format on every target, against formulas in numpy.

Tells a broken build or machine from a good one in a second. The tests of this package, which come
with its sources, judge by derived tolerances and many shapes instead.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kt_kernel import isa
from kt_kernel.experts import Experts, Projection
from kt_kernel.formats import FORMATS, WeightFormat
from kt_kernel.known_weights import known_weights
from kt_kernel.linear import Linear
from kt_kernel.moe import MoE
from kt_kernel.ops import Stream
from kt_kernel.router import Router
from kt_kernel.thread_pool import ThreadPool

__all__ = ("Check", "run")

# Ragged on purpose: no multiple of 8, 16 or 32, so that every tail is exercised.
_TOKENS, _HIDDEN, _INTERMEDIATE, _NUM_EXPERTS, _TOP_K, _HEAD_DIM = 5, 83, 51, 4, 2, 20
# Sums of some hundred float32 products, in any order, fused or not, lie within this of each other.
_FLOAT32 = 1e-5
# Integer dot products are equal, and one that is off by 1 moves a result by 1e-4: what remains is
# the rounding of a few scaled sums.
_INTEGER = 2e-6
# RMS error of activations, relative: see formats.py, which says the same of weights.
_ACTIVATION_ERROR = {"f32": 0.0, "bf16": 0.0017, "int8_g32": 0.0054}

_Float32 = NDArray[np.float32]
_Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """One op on one target. Errors are RMS, relative to the RMS of what was expected.

    Attributes:
        op: name of the op.
        format: weight format, or "" for an op without.
        target: what it ran on.
        error: distance from the formula.
        bound: largest `error` that the format's rounding explains.
        difference: distance from the scalar target's result.
        difference_bound: largest `difference` that the order of float sums explains.
    """

    op: str
    format: str
    target: str
    error: float
    bound: float
    difference: float
    difference_bound: float

    @property
    def passed(self) -> bool:
        """Whether both distances are within their bounds; NaN is not."""
        return self.error <= self.bound and self.difference <= self.difference_bound


@dataclass(frozen=True)
class _Case:
    op: str
    format: str
    run: Callable[[Stream], _Float64]
    expected: _Float64
    bound: float = _FLOAT32
    difference_bound: float = _FLOAT32


def run(pool: ThreadPool) -> list[Check]:
    """Check every op and format on every available target.

    Forces one target after the other and restores the active one: no other op may run meanwhile.
    """
    checks = []
    before = isa.active()
    try:
        for case in _cases(pool):
            isa.force("scalar")
            scalar = case.run(Stream(pool))
            for target in isa.available():
                isa.force(target)
                result = case.run(Stream(pool))
                error, difference = (_distance(result, y) for y in (case.expected, scalar))
                checks.append(
                    Check(
                        case.op,
                        case.format,
                        target,
                        error,
                        case.bound,
                        difference,
                        case.difference_bound,
                    )
                )
    finally:
        isa.force(before)
    return checks


def _distance(x: _Float64, y: _Float64) -> float:
    return float(np.sqrt(np.mean((x - y) ** 2) / np.mean(y**2)))


def _cases(pool: ThreadPool) -> Iterator[_Case]:
    for weight_format in FORMATS.values():
        yield _linear(weight_format, pool)
        yield _moe(weight_format, pool)
    yield from _rows()
    yield _embedding_of_blocks()
    yield _rope()
    yield _attention(11)
    yield _attention(1030)  # whose keys are split among the workers, and their sums merged
    yield _route()


def _linear(weight_format: WeightFormat, pool: ThreadPool) -> _Case:
    rng = np.random.default_rng(0)
    columns, rows = _columns(weight_format, _HIDDEN), _INTERMEDIATE
    x, known = _normal(rng, _TOKENS, columns), known_weights(weight_format, rng, rows, columns)

    def run_op(stream: Stream, out: _Float32) -> None:
        linear = Linear.pack(
            known.weight, format=weight_format.name, scales=known.scales, pool=pool
        )
        stream.linear(x, linear, out)

    return _Case(
        op="linear",
        format=weight_format.name,
        run=_returning((_TOKENS, rows), run_op),
        expected=_double(x) @ known.values.T,
        bound=_rounding(weight_format, 2),  # weight and activation
        difference_bound=_INTEGER if weight_format.activation_mode == "int8_g32" else _FLOAT32,
    )


def _moe(weight_format: WeightFormat, pool: ThreadPool) -> _Case:
    rng = np.random.default_rng(1)
    name, count = weight_format.name, _NUM_EXPERTS
    hidden, intermediate = (_columns(weight_format, n) for n in (_HIDDEN, _INTERMEDIATE))
    x = _normal(rng, _TOKENS, hidden)
    shapes: dict[Projection, tuple[int, int]] = {
        "gate": (intermediate, hidden),
        "up": (intermediate, hidden),
        "down": (hidden, intermediate),
    }
    known = {
        projection: [known_weights(weight_format, rng, *shape) for _ in range(count)]
        for projection, shape in shapes.items()
    }
    ids = np.array([[0, 3], [1, 2], [3, 1], [2, 0], [0, 1]], np.int32)
    weights = rng.random((_TOKENS, _TOP_K), np.float32)

    def run_op(stream: Stream, out: _Float32) -> None:
        experts = Experts.empty(count, hidden, intermediate, gate=name, up=name, down=name)
        for projection, matrices in known.items():
            for e, matrix in enumerate(matrices):
                experts.put(e, projection, matrix.weight, scales=matrix.scales)
        moe = MoE(experts, top_k=_TOP_K, max_tokens=_TOKENS, pool=pool)
        stream.moe(moe, x, ids, weights, out)

    expected = np.zeros((_TOKENS, hidden))
    for t in range(_TOKENS):
        for e, weight in zip(ids[t], weights[t], strict=True):
            gate, up, down = (matrices[e].values for matrices in known.values())
            expected[t] += weight * (down @ (_silu(gate @ x[t]) * (up @ x[t])))
    return _Case(
        op="moe",
        format=name,
        run=_returning((_TOKENS, hidden), run_op),
        expected=expected,
        # Three weights and two activations; silu passes on at most 1.1 of a relative error.
        bound=1.1 * _rounding(weight_format, 5),
        # Targets may round a value between the projections to different sides of a half.
        difference_bound=_FLOAT32 + _ACTIVATION_ERROR[weight_format.activation_mode],
    )


def _columns(weight_format: WeightFormat, ragged: int) -> int:
    """As many columns, or as many whole blocks of them as the format's bytes need."""
    if weight_format.takes_floats:
        return ragged
    return -(-ragged // weight_format.source_k) * weight_format.source_k


def _rows() -> Iterator[_Case]:
    rng = np.random.default_rng(2)
    x, y = (_normal(rng, _TOKENS, _HIDDEN) for _ in range(2))
    ids = np.array([3, 0, 4, 4, 1], np.int32)
    mean_square = (_double(x) ** 2).mean(axis=1, keepdims=True)
    ops: dict[str, tuple[Callable[[Stream, _Float32], None], _Float64]] = {
        "add": (lambda stream, out: stream.add(x, y, out), _double(x) + y),
        "activate": (lambda stream, out: stream.activate(x, y, out), _silu(_double(x)) * y),
        "embedding": (lambda stream, out: stream.embedding(ids, x, out), _double(x)[ids]),
        "rms_norm": (
            lambda stream, out: stream.rms_norm(x, y[0], out, eps=1e-6),
            x / np.sqrt(mean_square + 1e-6) * y[0],
        ),
    }
    for name, (run_op, expected) in ops.items():
        yield _Case(name, "", _returning((_TOKENS, _HIDDEN), run_op), expected)


def _embedding_of_blocks() -> _Case:
    ids = np.array([3, 0, 2], np.int32)
    table = known_weights(FORMATS["q6_k"], np.random.default_rng(6), 4, 512)

    def run_op(stream: Stream, out: _Float32) -> None:
        stream.embedding(ids, table.weight, out, format="q6_k")

    return _Case("embedding", "q6_k", _returning((3, 512), run_op), table.values[ids])


def _rope() -> _Case:
    rng = np.random.default_rng(3)
    q = _normal(rng, _TOKENS, 2, _HEAD_DIM)
    k, v = (_normal(rng, _TOKENS, 1, _HEAD_DIM) for _ in range(2))
    angles = np.arange(8)[:, None] * 0.7 ** np.arange(_HEAD_DIM // 2)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    positions = np.array([0, 3, 1, 7, 2], np.int32)
    slots = np.array([4, 0, 5, 2, 1], np.int32)

    def run_op(stream: Stream, out: _Float32) -> None:
        rotated = q.copy()
        k_cache, v_cache = (np.zeros((2, 4, 1, _HEAD_DIM), np.float32) for _ in range(2))
        stream.rope_write_kv(rotated, k, v, cos, sin, positions, slots, k_cache, v_cache)
        stored = (cache.reshape(8, 1, _HEAD_DIM)[slots] for cache in (k_cache, v_cache))
        np.concatenate([rotated, *stored], axis=1, out=out)

    def rotated(x: _Float32) -> _Float64:
        c, s = (_double(table)[positions][:, None] for table in (cos, sin))
        low, high = np.split(_double(x), 2, axis=-1)
        return np.concatenate([low * c - high * s, high * c + low * s], axis=-1)

    expected = np.concatenate([rotated(q), rotated(k), _double(v)], axis=1)
    return _Case("rope_write_kv", "", _returning(expected.shape, run_op), expected)


def _attention(length: int) -> _Case:
    """One sequence of tokens in pages of 4; the last 5 are queries, of 4 heads on 2."""
    rng = np.random.default_rng(4)
    page_size = 4
    q = _normal(rng, _TOKENS, 4, _HEAD_DIM)
    k, v = (_normal(rng, length, 2, _HEAD_DIM) for _ in range(2))
    pages = rng.permutation(-(-length // page_size)).astype(np.int32)[None]
    shape = (pages.size, page_size, 2, _HEAD_DIM)
    k_cache, v_cache = (np.zeros(shape, np.float32) for _ in range(2))
    for i in range(length):
        k_cache[pages[0, i // page_size], i % page_size] = k[i]
        v_cache[pages[0, i // page_size], i % page_size] = v[i]
    seq_lens, starts = np.array([length], np.int32), np.array([0, _TOKENS], np.int32)
    scale = _HEAD_DIM**-0.5

    def run_op(stream: Stream, out: _Float32) -> None:
        stream.attention(q, k_cache, v_cache, pages, seq_lens, starts, out, scale=scale)

    expected = np.empty(q.shape)
    for t in range(_TOKENS):
        seen = length - _TOKENS + t + 1
        for head in range(4):
            scores = np.exp(_double(k[:seen, head // 2]) @ q[t, head] * scale)
            expected[t, head] = scores @ v[:seen, head // 2] / scores.sum()
    return _Case("attention", "", _returning(q.shape, run_op), expected)


def _route() -> _Case:
    logits = _normal(np.random.default_rng(5), _TOKENS, 13)
    top_k = 3

    def run_op(stream: Stream, out: _Float32) -> None:
        ids, weights = np.empty((_TOKENS, top_k), np.int32), out[:, top_k:].copy()
        stream.route(logits, ids, weights, Router())
        np.concatenate([ids, weights], axis=1, out=out, casting="same_kind")

    best = np.argsort(-logits, axis=1)[:, :top_k]
    chosen = np.exp(np.take_along_axis(_double(logits), best, axis=1))
    expected = np.concatenate([best, chosen / chosen.sum(axis=1, keepdims=True)], axis=1)
    return _Case("route", "", _returning(expected.shape, run_op), expected)


def _returning(
    shape: tuple[int, ...], op: Callable[[Stream, _Float32], None]
) -> Callable[[Stream], _Float64]:
    """An op that fills an array of this shape, as a function that returns it."""

    def run_op(stream: Stream) -> _Float64:
        out = np.full(shape, np.nan, np.float32)
        op(stream, out)
        return _double(out)

    return run_op


def _rounding(weight_format: WeightFormat, roundings: int) -> float:
    """Bound on the error of a chain of so many roundings; the factor 2 is for the small sample."""
    worst = _ACTIVATION_ERROR[weight_format.activation_mode]
    if weight_format.takes_floats:  # else the weights are exact
        worst = max(worst, weight_format.weight_error)
    return float(2 * roundings**0.5 * worst + _FLOAT32)


def _normal(rng: np.random.Generator, *shape: int) -> _Float32:
    return rng.standard_normal(shape, np.float32)


def _double(x: _Float32) -> _Float64:
    return x.astype(np.float64)


def _silu(x: _Float64) -> _Float64:
    result: _Float64 = x / (1 + np.exp(-x))
    return result
