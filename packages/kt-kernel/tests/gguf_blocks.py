# SPDX-License-Identifier: Apache-2.0
"""Writes GGUF blocks from their fields, and a plain quantiser of the types that the gguf package
cannot make. Reading blocks is reference_weights.
"""

import numpy as np

SUPER_BLOCK = 256


def block(
    format: str,
    q: np.ndarray,
    d: np.ndarray | float,
    minimum: np.ndarray | float = 0,
    scales: np.ndarray | int = 1,
    minima: np.ndarray | int = 0,
) -> np.ndarray:
    """Rows of blocks, (N, K) stored values q to (N, bytes of a row) uint8.

    Args:
        q: as stored: in [0, 15] for q4_*, [-128, 127] for q8_0, [0, 31] for q5_k, [0, 63] for q6_k.
        d: scale of every block, (N, blocks) or one for all.
        minimum: of q4_1; dmin of q4_k and q5_k.
        scales: sub-scales of the K-quants, (N, K / 32), of q6_k (N, K / 16).
        minima: sub-minima of q4_k and q5_k, (N, K / 32).
    """
    size = SUPER_BLOCK if format.endswith("_k") else 32
    n, blocks = len(q), q.shape[1] // size
    stored = q.reshape(n, blocks, size).astype(np.int16).astype(np.uint8)
    halves = [_half(x, n, blocks) for x in (d, minimum)]
    if format == "q6_k":
        per_block = np.broadcast_to(scales, (n, q.shape[1] // 16)).reshape(n, blocks, 16)
        parts = [*_q6_values(stored), per_block.astype(np.int16).astype(np.uint8), halves[0]]
    elif format.endswith("_k"):
        shape = n, blocks, 8
        fields = [
            np.broadcast_to(x, (n, q.shape[1] // 32)).reshape(shape) for x in (scales, minima)
        ]
        runs = stored.reshape(n, blocks, 4, 2, 32)
        nibbles = (runs[..., 0, :] & 15 | runs[..., 1, :] << 4).reshape(n, blocks, 128)
        bits = stored.reshape(n, blocks, 8, 32) >> 4 & 1
        fifth = (bits << np.arange(8, dtype=np.uint8)[:, None]).sum(-2).astype(np.uint8)
        parts = [*halves, _k_scales(*fields), *([fifth] if format == "q5_k" else []), nibbles]
    elif format == "q8_0":
        parts = [halves[0], stored]
    else:
        nibbles = stored[..., :16] | stored[..., 16:] << 4
        parts = [*halves[: 2 if format == "q4_1" else 1], nibbles]
    return np.concatenate(parts, -1).reshape(n, -1)


def _half(x: np.ndarray | float, n: int, blocks: int) -> np.ndarray:
    values = np.broadcast_to(np.asarray(x, np.float16), (n, blocks)).copy()
    return values.view(np.uint8).reshape(n, blocks, 2)


def _k_scales(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """(…, 8) scales and minima of 6 bits in 12 bytes: the last four are split, 4 and 2 bits."""
    scales, minima = scales.astype(np.uint8), minima.astype(np.uint8)
    first = scales[..., :4] | scales[..., 4:] >> 4 << 6
    second = minima[..., :4] | minima[..., 4:] >> 4 << 6
    last = scales[..., 4:] & 15 | (minima[..., 4:] & 15) << 4
    return np.concatenate([first, second, last], -1)


def _q6_values(q: np.ndarray) -> list[np.ndarray]:
    quarters = q.reshape(*q.shape[:2], 2, 4, 32)
    low, high = quarters & 15, quarters >> 4
    nibbles = np.concatenate([low[..., r, :] | low[..., r + 2, :] << 4 for r in (0, 1)], -1)
    pairs = sum(high[..., r, :] << 2 * r for r in range(4)).astype(np.uint8)
    return [nibbles.reshape(*q.shape[:2], 128), pairs.reshape(*q.shape[:2], 64)]


def quantise(format: str, weight: np.ndarray) -> np.ndarray:
    """(N, K) float32 to rows of q4_k, q5_k or q6_k: scales from extremes, no search for better."""
    n = len(weight)
    if format == "q6_k":
        x = weight.reshape(n, -1, 16)
        size = np.abs(x).max(-1) / 31
        d, scales = _six_bit(size, 127, 16)
        step = np.repeat(d, 16, axis=1) * scales
        q = np.clip(np.rint(_divide(x, step)), -32, 31) + 32
        return block(format, q.reshape(n, -1), d, scales=scales)
    top = {"q4_k": 15, "q5_k": 31}[format]
    x = weight.reshape(n, -1, 32)
    low = np.minimum(x.min(-1), 0)
    dmin, minima = _six_bit(-low, 63, 8)
    minimum = np.repeat(dmin, 8, axis=1) * minima
    d, scales = _six_bit((x.max(-1) + minimum) / top, 63, 8)
    step = np.repeat(d, 8, axis=1) * scales
    q = np.clip(np.rint(_divide(x + minimum[..., None], step)), 0, top)
    return block(format, q.reshape(n, -1), d, dmin, scales, minima)


def _six_bit(x: np.ndarray, top: int, sub_blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """x >= 0 as float16 per super-block times integers up to `top`."""
    d = (x.reshape(len(x), -1, sub_blocks).max(-1) / top).astype(np.float16).astype(np.float64)
    return d, np.clip(np.rint(x / np.repeat(d, sub_blocks, axis=1)), 0, top)


def _divide(x: np.ndarray, step: np.ndarray) -> np.ndarray:
    return x / np.where(step > 0, step, 1)[..., None]
