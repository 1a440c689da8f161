# SPDX-License-Identifier: Apache-2.0
"""Random weights that are already quantised, as checkpoints hold them. Not what they mean."""

from typing import NamedTuple

import numpy as np

from kt_kernel import Experts, Linear


class Source(NamedTuple):
    """One weight matrix as `Linear.pack` and `Experts.put` take it: floats, or bytes."""

    weight: np.ndarray
    scales: np.ndarray | None = None
    zeros: np.ndarray | None = None

    def linear(self, format: str, group_size: int = 32, **options) -> Linear:
        return Linear.pack(
            self.weight,
            format=format,
            group_size=group_size,
            scales=self.scales,
            zeros=self.zeros,
            **options,
        )

    def put(self, experts: Experts, expert: int, projection: str) -> None:
        experts.put(expert, projection, self.weight, scales=self.scales, zeros=self.zeros)


class _Blocks(NamedTuple):
    k: int
    bytes: int
    halves: dict[int, float]  # offset: size of a float16 that gives weights of size 1


# Random bytes are valid blocks if their float16 fields are numbers.
_GGUF = {
    "q4_0": _Blocks(32, 18, {0: 1 / 5}),
    "q4_1": _Blocks(32, 20, {0: 1 / 5, 2: -1.5}),
    "q8_0": _Blocks(32, 34, {0: 1 / 74}),
    "q4_k": _Blocks(256, 144, {0: 1 / 300, 2: 1 / 36}),
    "q5_k": _Blocks(256, 176, {0: 1 / 600, 2: 1 / 36}),
    "q6_k": _Blocks(256, 210, {208: 1 / 1370}),
}


def quantised(
    format: str,
    shape: tuple[int, int],
    rng: np.random.Generator,
    group_size: int = 32,
    size: float = 1.0,
) -> Source:
    """Any values that the format can hold, (N, K) of them, with scales that make them about `size`.

    group_size: as `Linear.pack` takes it, for the formats that let the caller choose.
    """
    n, k = shape
    if format in _GGUF:
        return Source(_gguf_blocks(_GGUF[format], n, k, rng, size))
    if format == "fp8":
        codes = rng.integers(0, 255, shape, np.uint8)
        codes[codes == 0x7F] = 0x7E  # 0x7f and 0xff are NaN
        tiles = -(-n // 128), -(-k // 128)
        return Source(codes, _scales(tiles, rng, size / 110))
    if format == "mxfp4":
        exponents = rng.integers(-1, 2, (n, k // 32)) + round(np.log2(size)) + 125
        return Source(rng.integers(0, 256, (n, k // 2), np.uint8), exponents.astype(np.uint8))
    groups = n, -(-k // (group_size or k))
    if format == "int8":
        return Source(rng.integers(-128, 128, shape, np.int8), _scales(groups, rng, size / 74))
    zeros = rng.integers(0, 16, groups, np.uint8) if format == "int4_zp" else None
    return Source(rng.integers(0, 16, shape, np.uint8), _scales(groups, rng, size / 5), zeros)


def _scales(shape: tuple[int, int], rng: np.random.Generator, size: float) -> np.ndarray:
    return (rng.uniform(0.5, 1.5, shape) * size).astype(np.float32)


def _gguf_blocks(
    blocks: _Blocks, n: int, k: int, rng: np.random.Generator, size: float
) -> np.ndarray:
    count = n * (k // blocks.k)
    data = rng.integers(0, 256, (count, blocks.bytes), np.uint8)
    for offset, half in blocks.halves.items():
        values = (rng.uniform(0.5, 1.5, (count, 1)) * half * size).astype(np.float16)
        data[:, offset : offset + 2] = values.view(np.uint8)
    return data.reshape(n, -1)
