# SPDX-License-Identifier: Apache-2.0
"""Numpy oracle of every op, in float64 and in the plainest form. Slow on purpose. What the bytes of
a weight format mean is reference_weights.

Each function returns `Expected`: the value, and how far a float32 implementation may lie from it.
Tolerances are derived, element by element, from the operands: eps is float32's 2^-23 (twice the
unit roundoff, for the implementations that round a product before they add it).
"""

from typing import NamedTuple

import numpy as np

from kt_kernel import Activation, Router

EPS = 2.0**-23
SILU = Activation("silu")
BLOCK = 32  # activations are quantised per 32 of K
F64 = np.float64
F32 = np.float32


class Expected(NamedTuple):
    """A value and the largest error that rounding explains."""

    value: np.ndarray
    tolerance: np.ndarray


def assert_close(actual: np.ndarray, expected: Expected) -> None:
    """Fail with the worst element unless |actual - value| <= tolerance; NaN must meet NaN."""
    actual = np.asarray(actual, F64)
    value, tolerance = np.broadcast_arrays(*expected)
    assert actual.shape == value.shape, f"shape {actual.shape}, expected {value.shape}"
    with np.errstate(invalid="ignore"):
        excess = np.abs(actual - value) - tolerance - 1e-37  # float32 has nothing finer
    excess = np.where(np.isnan(actual) & np.isnan(value), -1.0, excess)
    bad = ~(excess <= 0)
    if bad.any():
        worst = np.unravel_index(
            np.nanargmax(np.where(np.isnan(excess), np.inf, excess)), bad.shape
        )
        raise AssertionError(
            f"{bad.sum()} of {bad.size} elements off; worst at {tuple(map(int, worst))}: "
            f"got {actual[worst]!r}, expected {value[worst]!r} +- {tolerance[worst]!r}"
        )


# --- element types -----------------------------------------------------------------------------


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """Float32 to bfloat16 bits, round to nearest even, NaN quiet."""
    bits = np.asarray(x, F32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """Bfloat16 bits to float32."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(F32)


def round_bf16(x: np.ndarray) -> np.ndarray:
    """Float32 rounded to the nearest bfloat16."""
    return from_bf16(bf16_bits(x))


def encode(x: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 to memory of one of our element types."""
    return {
        "float32": lambda: x.astype(F32),
        "bf16": lambda: bf16_bits(x),
        "f16": lambda: x.astype(np.float16),
    }[dtype]()


def decode(x: np.ndarray, dtype: str) -> np.ndarray:
    """Memory of one of our element types to float32."""
    return from_bf16(x) if dtype == "bf16" else x.astype(F32)


def stored(expected: Expected, dtype: str) -> Expected:
    """The tolerance after the value is rounded to an element type: half an ulp more."""
    half_ulp = {"float32": 0.0, "bf16": 2.0**-8, "f16": 2.0**-11}[dtype]
    tiny = 2.0**-25 if dtype == "f16" else 0.0  # half the smallest float16 subnormal
    wider = np.abs(expected.value) + expected.tolerance
    return Expected(expected.value, expected.tolerance + half_ulp * wider + tiny)


# --- weights and activations -------------------------------------------------------------------


class Stored(NamedTuple):
    """A packed weight (N, K), as reference_weights makes it: values = scale * q + minimum.

    scale and minimum are those of every block of 32 of K, (N, ceil(K / 32)); None is 1 and 0. With
    activations in int8, q are integers.
    """

    mode: str  # how activations meet it: "f32", "bf16", "int8_g32"
    q: np.ndarray
    scale: np.ndarray | None = None
    minimum: np.ndarray | None = None

    @property
    def values(self) -> np.ndarray:
        scale, minimum = (
            None if x is None else np.repeat(x, BLOCK, axis=1)[:, : self.q.shape[1]]
            for x in (self.scale, self.minimum)
        )
        return (1 if scale is None else scale) * self.q + (0 if minimum is None else minimum)


def grouped(x: np.ndarray, size: int) -> np.ndarray:
    """(..., K) to (..., ceil(K / size), size), padded with zeros."""
    pad = -x.shape[-1] % size
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pad)])
    return padded.reshape(*x.shape[:-1], padded.shape[-1] // size, size)


def quantise_activation(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, K) float32 to integers (M, blocks, 32) and float32 scales (M, blocks)."""
    blocks = grouped(x.astype(F32), BLOCK)
    absmax = np.abs(blocks).max(-1)
    inverse = F32(127) / np.where(absmax > 0, absmax, F32(1))
    return np.rint(blocks * inverse[..., None]), absmax / F32(127)


def activation_bound(x: np.ndarray, mode: str) -> np.ndarray:
    """Largest distance of each activation from the original in a mode."""
    if mode == "f32":
        return np.zeros(x.shape)
    if mode == "bf16":
        return np.abs(x) * 2.0**-8 * (1 + EPS)
    _, scales = quantise_activation(x)
    return np.repeat(scales.astype(F64) / 2, BLOCK, axis=1)[:, : x.shape[1]] * (1 + 256 * EPS)


# --- ops ---------------------------------------------------------------------------------------


def linear(x: np.ndarray, weight: Stored, bias: np.ndarray | None = None) -> Expected:
    """x @ weight.T + bias with exactly the arithmetic of the format, up to float32 summation."""
    if weight.mode != "int8_g32":
        a, w = (round_bf16(x) if weight.mode == "bf16" else x).astype(F64), weight.values
        value, magnitude, roundings = a @ w.T, np.abs(a) @ np.abs(w).T, w.shape[1] + 2
    else:
        # Integer dot products per block are exact; their scaling and summing rounds.
        aq, a_scale = quantise_activation(x)
        wq = grouped(weight.q, BLOCK)
        dots = np.matmul(aq.transpose(1, 0, 2).astype(F64), wq.transpose(1, 2, 0))
        terms = dots.transpose(1, 2, 0) * a_scale.astype(F64)[:, None] * weight.scale[None]
        value, magnitude = terms.sum(-1), np.abs(terms).sum(-1)
        roundings = wq.shape[1] + 4
        if weight.minimum is not None:  # a second sum, over which the first one's errors grow
            sums = aq.sum(-1, dtype=F64) * a_scale
            value = value + sums @ weight.minimum.T
            magnitude = magnitude + np.abs(sums) @ np.abs(weight.minimum).T
            roundings += wq.shape[1] + 1
    if bias is not None:
        value, magnitude = value + bias, magnitude + np.abs(bias)
    return Expected(value, roundings * EPS * magnitude)


def linear_exact(x: np.ndarray, weight: np.ndarray, stored: Stored) -> Expected:
    """x @ weight.T of the unquantised operands, with the error that quantisation causes at most."""
    a, w = np.abs(x.astype(F64)), np.abs(weight.astype(F64))
    da, dw = activation_bound(x, stored.mode), np.abs(stored.values - weight)
    bound = a @ dw.T + da @ w.T + da @ dw.T
    float_error = (2 * weight.shape[1] + 2) * EPS * ((a + da) @ (w + dw).T)
    return Expected(x.astype(F64) @ weight.astype(F64).T, bound + float_error)


def activate(gate: np.ndarray | None, up: np.ndarray, activation: Activation = SILU) -> Expected:
    """The activation's formula, x * sigmoid(t) with a factor.

    The exponential is good to 2 ulp; 8 eps cover it and four operations. Where t is computed, its
    relative error of a few eps counts |t| (1 - sigmoid(t)) times. A sigmoid below the normal range
    becomes 0.
    """
    kind, u = activation.kind, up.astype(F64)
    if kind == "relu2":
        value = np.where(u > 0, u, 0.0 * u) ** 2
        return Expected(value, EPS * np.abs(value))
    limit = np.inf if activation.limit is None else float(F32(activation.limit))
    g = gate.astype(F64)
    if kind in ("silu_clamped", "swigluoai"):
        g = np.where(g > limit, limit, g)
    factor = np.clip(u, -limit, limit) + (kind == "swigluoai")
    t = {
        "gelu": 2 * np.sqrt(2 / np.pi) * (g + 0.044715 * g**3),
        "swigluoai": float(F32(activation.alpha or 0)) * g,
    }.get(kind, g)
    with np.errstate(over="ignore"):
        gated = g / (1 + np.exp(-t))
        drift = np.abs(t) / (1 + np.exp(t)) * (t is not g)
    if kind == "silu_post_clamped":
        gated = np.where(gated > limit, limit, gated)
    value = gated * factor
    return Expected(value, (8 + 4 * drift) * EPS * np.abs(value) + 1e-38 * np.abs(g * factor))


def add(x: np.ndarray, y: np.ndarray) -> Expected:
    """x + y, correctly rounded."""
    value = (x.astype(F32) + y.astype(F32)).astype(F64)
    return Expected(value, np.zeros_like(value))


def embedding(ids: np.ndarray, weight: np.ndarray) -> Expected:
    """Rows of `weight` (float32 values); NaN for ids outside it. Exact."""
    inside = (ids >= 0) & (ids < len(weight))
    value = np.where(inside[:, None], weight[np.where(inside, ids, 0)].astype(F64), np.nan)
    return Expected(value, np.zeros_like(value))


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> Expected:
    """x / sqrt(mean(x^2) + eps) * weight. A mean of C squares is off by C eps, its root by half."""
    x = x.astype(F64)
    value = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight
    return Expected(value, (x.shape[-1] / 2 + 8) * EPS * np.abs(value))


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, positions: np.ndarray) -> Expected:
    """Rotate pairs (i, i + R/2) of the first R elements of every head (tokens, heads, head_dim)."""
    half = cos.shape[1]
    c, s = cos[positions].astype(F64)[:, None], sin[positions].astype(F64)[:, None]
    x = x.astype(F64)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    value = np.concatenate([a * c - b * s, b * c + a * s, rest], -1)
    size = np.concatenate(
        [np.abs(a * c) + np.abs(b * s), np.abs(b * c) + np.abs(a * s), 0 * rest], -1
    )
    return Expected(value, 2 * EPS * size)


def quantise_heads(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., head_dim) float32 to int8 and one float32 scale per head; NaN scale if not finite."""
    absmax = np.abs(x.astype(F32)).max(-1)
    with np.errstate(invalid="ignore"):
        q = np.rint(x * (F32(127) / np.where(absmax > 0, absmax, F32(1)))[..., None])
    finite = np.isfinite(absmax)
    scales = np.where(finite, absmax / F32(127), F32(np.nan))
    return np.where(finite[..., None], q, 0).astype(np.int8), scales


def attention(
    q, k_cache, v_cache, block_table, seq_lens, cu_seqlens_q, scale, window=0, sinks=None
) -> Expected:
    """Causal GQA, one query row and head at a time; float caches (pages, page_size, heads, D)."""
    page_size, num_kv_heads = k_cache.shape[1:3]
    group = q.shape[1] // num_kv_heads
    value, tolerance = np.zeros(q.shape), np.zeros(q.shape)
    for s, length in enumerate(seq_lens):
        pages = block_table[s, : -(-length // page_size)]
        keys = k_cache[pages].reshape(-1, *k_cache.shape[2:])[:length].astype(F64)
        values = v_cache[pages].reshape(-1, *v_cache.shape[2:])[:length].astype(F64)
        for t in range(cu_seqlens_q[s], cu_seqlens_q[s + 1]):
            end = length - (cu_seqlens_q[s + 1] - t) + 1
            begin = max(0, end - window) if window else 0
            for h in range(q.shape[1]):
                key, val = keys[begin:end, h // group], values[begin:end, h // group]
                scores = scale * (key @ q[t, h].astype(F64))
                extra = [] if sinks is None else [F64(sinks[h])]
                top = max([scores.max(), *extra])
                weights = np.exp(scores - top)
                weights /= weights.sum() + np.exp(np.array(extra) - top).sum()
                value[t, h] = weights @ val
                # An error d of a score is a relative error d of its weight, and of the sum.
                size = abs(scale) * (np.abs(key) @ np.abs(q[t, h].astype(F64)))
                spread = top - min([scores.min(), *extra])
                score_error = (key.shape[1] + 4) * EPS * size.max() + EPS * spread
                relative = 2 * score_error + (end - begin + 16) * EPS
                tolerance[t, h] = relative * (weights @ np.abs(val))
    return Expected(value, tolerance)


def route(
    logits: np.ndarray,
    top_k: int,
    router: Router,
    bias: np.ndarray | None = None,
    hashed: np.ndarray | None = None,
) -> tuple[np.ndarray, Expected]:
    """Ids and weights as `Router` says; `hashed` (rows, top_k): the ids of a hash router."""
    x = logits.astype(F64)
    score, spread = _scores(x, router.score)
    choice = (x if router.select_on == "logit" else score) + (0 if bias is None else bias)
    grouped = choice.reshape(len(x), router.num_groups, x.shape[1] // router.num_groups)
    best_two = np.sort(grouped, -1)[..., -2:]
    group_score = best_two.max(-1) if router.group_score == "max" else best_two.sum(-1)
    best = np.argsort(-group_score, -1, kind="stable")[:, : router.topk_groups]
    allowed = np.zeros(group_score.shape, bool)
    np.put_along_axis(allowed, best, True, -1)
    masked = np.where(allowed[..., None], grouped, -np.inf).reshape(x.shape)
    ids = np.argsort(-masked, -1, kind="stable")[:, :top_k] if hashed is None else hashed
    if router.score == "sparsemixer":
        weights = _sparsemixer_weights(x, ids, router.jitter_eps)
    else:
        weights = np.take_along_axis(score, ids.astype(np.int64), -1)
    # exp of a rounded difference, a sum of E terms, a sum of k terms, a few operations.
    relative = (
        2 * np.abs(spread).max(-1, keepdims=True, initial=0) + x.shape[1] + top_k + 16
    ) * EPS
    total = weights.sum(-1, keepdims=True)
    if router.norm == "sum":
        weights = weights / (total + router.norm_eps)
    elif router.norm == "clamp":
        weights = weights / np.maximum(total, router.norm_eps)
    weights = weights * router.scale
    return ids.astype(np.int32), Expected(weights, relative * np.abs(weights))


def _scores(x: np.ndarray, score: str) -> tuple[np.ndarray, np.ndarray]:
    """The scores, and the arguments of the exponentials in them."""
    if score == "sigmoid":
        return 1 / (1 + np.exp(-x)), x
    if score == "sqrtsoftplus":
        return np.sqrt(np.logaddexp(0, x)), x
    spread = x - x.max(-1, keepdims=True)
    return np.exp(spread) / np.exp(spread).sum(-1, keepdims=True), spread


def _sparsemixer_weights(x: np.ndarray, ids: np.ndarray, jitter_eps: float) -> np.ndarray:
    """Slot by slot: softmax over the experts still free and near the best of them."""
    weights = np.empty(ids.shape)
    for row, chosen, out in zip(x, ids, weights, strict=True):
        free = np.ones(len(row), bool)
        for slot, expert in enumerate(chosen):
            top = row[expert]
            with np.errstate(invalid="ignore"):
                near = ~((top - row) / np.maximum(np.abs(row), top) > 2 * jitter_eps)
            out[slot] = 1 / np.exp(row - top)[free & near].sum()
            free[expert] = False
    return weights


class Expert(NamedTuple):
    """The packed projections of one expert (gate None: it has no gate) and their biases."""

    gate: Stored | None
    up: Stored
    down: Stored
    gate_bias: np.ndarray | None = None
    up_bias: np.ndarray | None = None
    down_bias: np.ndarray | None = None


def moe(
    x: np.ndarray,
    experts: list[Expert],
    topk_ids: np.ndarray,
    topk_weights: np.ndarray,
    activation: Activation = SILU,
    resident: np.ndarray | None = None,
) -> Expected:
    """The routed experts, one after another, with exactly the arithmetic of their formats.

    The inner activation is rounded a second time (bf16 or int8), where a last-bit difference before
    may move an element by a whole step: `_requantised` bounds that, element by element.
    """
    value, tolerance = np.zeros(x.shape), np.zeros(x.shape)
    for e, expert in enumerate(experts):
        weight = np.where(topk_ids == e, topk_weights, 0).sum(1, dtype=F64)[:, None]
        rows = (topk_ids == e).any(1)
        if not rows.any() or (resident is not None and resident[e]):
            continue
        h = _between(x[rows], expert, activation)
        inner = h.value.astype(F32)
        y = linear(inner, expert.down, expert.down_bias)
        moved = _requantised(inner, h.tolerance + EPS * np.abs(h.value), expert.down.mode)
        y_error = y.tolerance + moved @ np.abs(expert.down.values).T
        value[rows] += weight[rows] * y.value
        rounding = (topk_ids.shape[1] + 1) * EPS * np.abs(y.value)
        tolerance[rows] += np.abs(weight[rows]) * (y_error + rounding)
    return Expected(value, tolerance)


def _between(x: np.ndarray, expert: Expert, activation: Activation) -> Expected:
    """The activation of gate and up. Over so short a way as their errors it is as good as linear,
    so that it moves farthest towards one of the corners."""
    up = linear(x, expert.up, expert.up_bias)
    if expert.gate is None:
        gate, corners = None, [(None, up.value + sign * up.tolerance) for sign in (-1, 1)]
    else:
        gate = linear(x, expert.gate, expert.gate_bias)
        corners = [
            (gate.value + a * gate.tolerance, up.value + b * up.tolerance)
            for a in (-1, 1)
            for b in (-1, 1)
        ]
    value, tolerance = activate(None if gate is None else gate.value, up.value, activation)
    moved = [np.abs(activate(*corner, activation).value - value) for corner in corners]
    return Expected(value, tolerance + 1.01 * np.max(moved, axis=0))


def _requantised(x: np.ndarray, error: np.ndarray, mode: str) -> np.ndarray:
    """How far the rounded activation may move if each element of (1, K) x moves by `error`."""
    if mode == "f32":
        return error
    if mode == "bf16":
        low, high = round_bf16((x - error).astype(F32)), round_bf16((x + error).astype(F32))
        return np.maximum(high - round_bf16(x), round_bf16(x) - low).astype(F64)
    q, scales = quantise_activation(x)
    scales = scales.astype(F64)
    absmax = np.abs(grouped(x, BLOCK)).max(-1)
    safe = np.where(scales > 0, scales, 1.0)[..., None]
    # The scale follows the largest element; a division and the product with it round.
    slack = grouped(error, BLOCK).max(-1) / np.where(absmax > 0, absmax, 1.0) + 4 * EPS
    reach = (grouped(error, BLOCK) / safe) + np.abs(q) * slack[..., None]
    exact = grouped(x, BLOCK) / safe
    steps = np.maximum(np.rint(exact + reach) - q, q - np.rint(exact - reach))
    moved = steps * scales[..., None] + np.abs(q) * (scales * slack)[..., None]
    return moved.reshape(len(x), -1)[:, : x.shape[1]]
