# SPDX-License-Identifier: Apache-2.0
"""Numpy oracle of the weight formats: the numbers that float weights, once rounded, or already
quantised bytes stand for. Written from the formats' publications, block by block; products are
reference.linear's.
"""

import numpy as np

from .reference import BLOCK, F32, F64, Stored, grouped, round_bf16
from .sources import Source

SUPER_BLOCK = 256  # of the K-quants


def mode(format: str) -> str:
    """How activations meet a format."""
    floats = {"float32": "f32", "f16": "f32", "bf16": "bf16", "fp8": "bf16"}
    return floats.get(format, "int8_g32")


def stored(source: Source, format: str, group_size: int = 32) -> Stored:
    """What a matrix packed from `source` holds. group_size as `Linear.pack` takes it."""
    if source.weight.dtype.itemsize == 1:
        source = source._replace(weight=source.weight.view(np.uint8))
        return Stored(mode(format), *_FROM_BYTES[format](source, group_size))
    return Stored(mode(format), *_FROM_FLOATS[format](source.weight.astype(F32), group_size))


def step(weight: Stored) -> np.ndarray:
    """The distance of neighbouring values (of an integer format), of every weight."""
    return np.repeat(np.abs(weight.scale), BLOCK, axis=1)[:, : weight.q.shape[1]]


def _by_group(q: np.ndarray, scale: np.ndarray, k: int, minimum: np.ndarray | None = None):
    """q (N, groups, group), scale and minimum (N, groups), as Stored has them."""
    blocks, times = -(-k // BLOCK), q.shape[-1] // BLOCK
    per_block = [
        None if x is None else np.repeat(x.astype(F64), times, axis=1)[:, :blocks]
        for x in (scale, minimum)
    ]
    return q.reshape(len(q), -1)[:, :k].astype(F64), *per_block


def _group(group_size: int, k: int) -> int:
    return group_size or -(-k // BLOCK) * BLOCK


# --- rounding of floats --------------------------------------------------------------------------
#
# The arithmetic is float32, as the rounding is part of the format: scales are rounded to their
# stored type first, then x * (1 / scale) to the nearest integer, ties to even.


def _inverse(scale: np.ndarray) -> np.ndarray:
    scale = scale.astype(F32)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = F32(1) / scale
    return np.where(np.isfinite(inverse), inverse, F32(0))


def _round(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.rint(x * _inverse(scale)[..., None])


def _farthest(x: np.ndarray) -> np.ndarray:
    """Of each group, the value farthest from 0, the positive one of two."""
    low, high = x.min(-1), x.max(-1)
    return np.where(high >= -low, high, low)


def _signed(low: int, high: int):
    def of(weight: np.ndarray, group_size: int):
        k = weight.shape[1]
        x = grouped(weight, _group(group_size, k))
        extreme = -np.abs(x).max(-1) if low == -high else _farthest(x)
        scale = round_bf16(extreme / F32(low))
        scale = np.where(_inverse(scale) == 0, F32(0), scale)
        return _by_group(np.clip(_round(x, scale), low, high), scale, k)

    return of


def _int4_zp(weight: np.ndarray, group_size: int):
    k = weight.shape[1]
    x = grouped(weight, _group(group_size, k))
    low, high = np.minimum(x.min(-1), F32(0)), np.maximum(x.max(-1), F32(0))
    scale = round_bf16((high - low) / F32(15))
    zero = np.minimum(np.trunc(-low * _inverse(scale) + F32(0.5)), 15)[..., None]
    return _by_group(np.clip(_round(x, scale) + zero, 0, 15) - zero, scale, k)


def _q4_0(weight: np.ndarray, _: int):
    x = grouped(weight, BLOCK)
    scale = (_farthest(x) / F32(-8)).astype(np.float16)
    return _by_group(np.clip(_round(x, scale), -8, 7), scale, weight.shape[1])


def _q4_1(weight: np.ndarray, _: int):
    x = grouped(weight, BLOCK)
    minimum = x.min(-1).astype(np.float16)
    scale = ((x.max(-1) - minimum.astype(F32)) / F32(15)).astype(np.float16)
    q = np.clip(_round(x - minimum.astype(F32)[..., None], scale), 0, 15)
    return _by_group(q, scale, weight.shape[1], minimum)


def _q8_0(weight: np.ndarray, _: int):
    x = grouped(weight, BLOCK)
    scale = (np.abs(x).max(-1) / F32(127)).astype(np.float16)
    return _by_group(np.clip(_round(x, scale), -127, 127), scale, weight.shape[1])


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def _mxfp4(weight: np.ndarray, _: int):
    """OCP Microscaling: the block's exponent is floor(log2(absmax)) - 2; nearest, ties to even."""
    x = grouped(weight, BLOCK).astype(F64)
    absmax = np.abs(x).max(-1)
    exponent = np.where(absmax > 0, np.frexp(absmax)[1] - 1, -200) - 2
    scale = np.where(exponent > -127, np.exp2(exponent.astype(F64)), 0)
    size = np.abs(x) / np.where(scale > 0, scale, np.inf)[..., None]
    # An odd code costs a little more: less than any two float32 sizes differ, enough for a tie.
    code = np.abs(size[..., None] - E2M1[:8]) + 1e-9 * (np.arange(8) % 2)
    values = np.copysign(E2M1[code.argmin(-1)], x)
    return _by_group(2 * values, scale / 2, weight.shape[1])


_FROM_FLOATS = {
    "float32": lambda weight, _: (weight.astype(F64), None, None),
    "bf16": lambda weight, _: (round_bf16(weight).astype(F64), None, None),
    "f16": lambda weight, _: (weight.astype(np.float16).astype(F64), None, None),
    "int8": _signed(-127, 127),
    "int4": _signed(-8, 7),
    "int4_zp": _int4_zp,
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q8_0": _q8_0,
    "mxfp4": _mxfp4,
}


# --- meaning of bytes ----------------------------------------------------------------------------


def e4m3(codes: np.ndarray) -> np.ndarray:
    """OCP FP8 E4M3: bias 7, subnormals, no infinities, all ones is NaN."""
    exponent, mantissa = codes >> 3 & 15, (codes & 7).astype(F64)
    size = np.where(
        exponent == 0,
        mantissa / 8 * 2.0**-6,
        (1 + mantissa / 8) * np.exp2(exponent.astype(F64) - 7),
    )
    size = np.where(codes & 0x7F == 0x7F, np.nan, size)
    return np.where(codes & 0x80, -size, size)


def _fp8(source: Source, _: int):
    n, k = source.weight.shape
    scale = np.repeat(np.repeat(source.scales, 128, axis=0), 128, axis=1)[:n, :k]
    return e4m3(source.weight) * scale.astype(F64), None, None


def _with_scales(offset: int):
    def of(source: Source, group_size: int):
        k = source.weight.shape[1]
        q = source.weight.astype(F64)
        zeros = np.full(source.scales.shape, offset) if source.zeros is None else source.zeros
        zeros = np.repeat(zeros, _group(group_size, k), axis=1)[:, :k]
        q = grouped(q - zeros, _group(group_size, k))
        return _by_group(q, round_bf16(source.scales), k)

    return of


def _mxfp4_bytes(source: Source, _: int):
    codes = np.stack([source.weight & 15, source.weight >> 4], -1).reshape(len(source.weight), -1)
    scale = np.ldexp(1.0, source.scales.astype(int) - 127)
    scale = np.where(source.scales == 255, np.nan, scale)
    return _by_group(grouped(2 * E2M1[codes], BLOCK), scale / 2, codes.shape[1])


def _f16(blocks: np.ndarray, at: int) -> np.ndarray:
    return blocks[..., at : at + 2].copy().view(np.float16)[..., 0].astype(F64)


def _blocks(source: Source, size: int) -> np.ndarray:
    return source.weight.reshape(len(source.weight), -1, size)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """All low nibbles, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], -1)


def _q4_0_bytes(source: Source, _: int):
    blocks = _blocks(source, 18)
    q = _nibbles(blocks[..., 2:]).astype(F64) - 8
    return _by_group(q, _f16(blocks, 0), q.shape[1] * BLOCK)


def _q4_1_bytes(source: Source, _: int):
    blocks = _blocks(source, 20)
    q = _nibbles(blocks[..., 4:])
    return _by_group(q, _f16(blocks, 0), q.shape[1] * BLOCK, _f16(blocks, 2))


def _q8_0_bytes(source: Source, _: int):
    blocks = _blocks(source, 34)
    q = blocks[..., 2:].copy().view(np.int8)
    return _by_group(q, _f16(blocks, 0), q.shape[1] * BLOCK)


def _k_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8 scales and 8 minima of 6 bits in 12 bytes: four of each whole, of the others 4 + 2 bits."""
    first, second, last = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = [first & 63, last & 15 | (first >> 6) << 4]
    minima = [second & 63, last >> 4 | (second >> 6) << 4]
    return np.concatenate(scales, -1).astype(F64), np.concatenate(minima, -1).astype(F64)


def _k_quant(has_fifth_bit: bool):
    size = 176 if has_fifth_bit else 144

    def of(source: Source, _: int):
        blocks = _blocks(source, size)
        scales, minima = _k_scales(blocks[..., 4:16])
        # Four runs of 64: 32 bytes, whose low nibbles come first.
        q = _nibbles(blocks[..., size - 128 :].reshape(*blocks.shape[:2], 4, 32))
        q = q.reshape(*blocks.shape[:2], 8, BLOCK)
        if has_fifth_bit:
            bits = blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
            q = q + 16 * bits
        scale = _f16(blocks, 0)[..., None] * scales
        minimum = -_f16(blocks, 2)[..., None] * minima
        n, k = len(blocks), blocks.shape[1] * SUPER_BLOCK
        return _by_group(q.reshape(n, -1, BLOCK), scale.reshape(n, -1), k, minimum.reshape(n, -1))

    return of


def _q6_k_bytes(source: Source, _: int):
    blocks = _blocks(source, 210)
    shape = *blocks.shape[:2], 2, -1
    low, high = blocks[..., :128].reshape(shape), blocks[..., 128:192].reshape(shape)
    # Halves of 128 values: 64 bytes of nibbles, low ones first, and 32 bytes of four bit pairs.
    pairs = high[..., None, :] >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    q = _nibbles(low) + 16 * pairs.reshape(shape).astype(F64) - 32
    scales = blocks[..., 192:208].copy().view(np.int8).astype(F64)
    n, k = len(blocks), blocks.shape[1] * SUPER_BLOCK
    q = q.reshape(n, -1, 16) * scales.reshape(n, -1, 1)
    d = np.repeat(_f16(blocks, 208), SUPER_BLOCK // BLOCK, axis=1)
    return _by_group(q.reshape(n, -1, BLOCK), d, k)


_FROM_BYTES = {
    "fp8": _fp8,
    "int8": lambda source, group: _with_scales(0)(
        source._replace(weight=source.weight.view(np.int8)), group
    ),
    "int4": _with_scales(8),
    "int4_zp": _with_scales(0),
    "q4_0": _q4_0_bytes,
    "q4_1": _q4_1_bytes,
    "q8_0": _q8_0_bytes,
    "q4_k": _k_quant(has_fifth_bit=False),
    "q5_k": _k_quant(has_fifth_bit=True),
    "q6_k": _q6_k_bytes,
    "mxfp4": _mxfp4_bytes,
}
