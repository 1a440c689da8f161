# SPDX-License-Identifier: Apache-2.0
"""Weights whose values are known, for the self-check: floats, or the bytes of the formats that take
no floats, made from values and never decoded.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kt_kernel.formats import WeightFormat

__all__ = ("KnownWeights", "known_weights")

_SUPER = 256  # K of a super-block of the K-quants
_D, _D_MIN = 2.0**-10, 2.0**-7  # exact in float16; make rows of 256 about as long as 1


class KnownWeights(NamedTuple):
    """One matrix as `Linear.pack` and `Experts.put` take it, and what it stands for."""

    weight: NDArray[np.float32] | NDArray[np.uint8]
    scales: NDArray[np.float32] | None
    values: NDArray[np.float64]


def known_weights(
    weight_format: WeightFormat, rng: np.random.Generator, n: int, k: int
) -> KnownWeights:
    """An (n, k) matrix whose rows have a length of about 1; k is a multiple of `source_k` where the
    format takes bytes only.
    """
    if not weight_format.takes_floats:
        return _FROM_BYTES[weight_format.name](rng, n, k)
    weight = rng.standard_normal((n, k), np.float32) / np.float32(k**0.5)
    return KnownWeights(weight, None, weight.astype(np.float64))


def _fp8(rng: np.random.Generator, n: int, k: int) -> KnownWeights:
    """Sign, 4 bits of exponent with bias 7, 3 of mantissa; a scale per 128 x 128."""
    sign, exponent, mantissa = (rng.integers(0, end, (n, k)) for end in (2, 8, 8))
    exponent += 1  # no subnormals, whose rule differs
    scales = (rng.random((-(-n // 128), -(-k // 128))) / 16).astype(np.float32)
    values = (1 - 2 * sign) * 2.0 ** (exponent - 7) * (1 + mantissa / 8)
    spread = scales.astype(np.float64).repeat(128, axis=0).repeat(128, axis=1)[:n, :k]
    return KnownWeights(
        (sign << 7 | exponent << 3 | mantissa).astype(np.uint8), scales, values * spread
    )


def _q4_k(rng: np.random.Generator, n: int, k: int) -> KnownWeights:
    """float16 d and dmin, 12 bytes of scales and minima of 6 bits, 128 bytes of two values each.

    One q per super-block and scales below 16: the packed order of the bytes is then plain.
    """
    q, header, values = _k_quant(rng, n, k, 16)
    return _bytes([header, (q * 0x11).repeat(128, axis=-1)], values)


def _q5_k(rng: np.random.Generator, n: int, k: int) -> KnownWeights:
    """As Q4_K, with 32 bytes of fifth bits before the values."""
    q, header, values = _k_quant(rng, n, k, 32)
    fifths, fours = (q >> 4) * 0xFF, (q & 15) * 0x11
    return _bytes([header, fifths.repeat(32, axis=-1), fours.repeat(128, axis=-1)], values)


def _k_quant(
    rng: np.random.Generator, n: int, k: int, end: int
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.float64]]:
    """q below `end` and header of each super-block, and the values d * scale * q - dmin * min."""
    supers = (n, k // _SUPER)
    q = rng.integers(0, end, (*supers, 1))
    scales, minima = (rng.integers(1, 16, (*supers, 8)) for _ in range(2))
    high = scales[..., 4:] | minima[..., 4:] << 4  # low four bits of the last four; no others set
    packed = np.concatenate([scales[..., :4], minima[..., :4], high], axis=-1).astype(np.uint8)
    d = np.broadcast_to(np.array([_D, _D_MIN], np.float16).view(np.uint8), (*supers, 4))
    values = _D * scales * q - _D_MIN * minima
    return q, np.concatenate([d, packed], axis=-1), values.repeat(32, axis=-1)


def _q6_k(rng: np.random.Generator, n: int, k: int) -> KnownWeights:
    """128 bytes of low, 64 of high bits, 16 int8 scales, float16 d; d * scale * (q - 32)."""
    supers = (n, k // _SUPER)
    q = rng.integers(0, 64, (*supers, 1))
    scales = rng.integers(1, 17, (*supers, 16)) * rng.choice([-1, 1], (*supers, 16))
    d = np.broadcast_to(np.array([_D / 4], np.float16).view(np.uint8), (*supers, 2))
    low, high = ((q & 15) * 0x11).repeat(128, axis=-1), ((q >> 4) * 0x55).repeat(64, axis=-1)
    values = np.asarray(_D / 4 * scales * (q - 32), np.float64)
    return _bytes([low, high, scales.astype(np.int8).view(np.uint8), d], values.repeat(16, axis=-1))


def _bytes(parts: list[NDArray[np.integer]], values: NDArray[np.float64]) -> KnownWeights:
    blocks = np.concatenate([part.astype(np.uint8) for part in parts], axis=-1)
    n = len(blocks)
    return KnownWeights(blocks.reshape(n, -1), None, values.reshape(n, -1))


_FROM_BYTES: dict[str, Callable[[np.random.Generator, int, int], KnownWeights]] = {
    "fp8": _fp8,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}
