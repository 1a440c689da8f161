# SPDX-License-Identifier: Apache-2.0
"""Random weights as ggml blocks, and the layer computed from them in numpy: what every peer must
agree with. Not quantisation: values are drawn as blocks, so no peer's packing is preferred.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from gguf import quants

from kt_kernel import Activation
from shapes import Shape

FP8_MAX = 448.0
NUM_DISTINCT = 4  # experts in the file, repeated: enough to see a wrong id, quick to make
# Where a block keeps its float16 scales, with their sizes relative to each other. An offset is that
# large that values have about zero mean.
SCALES = {
    "Q4_0": {0: 1.0},
    "Q4_1": {0: 1.0, 2: -7.5},
    "Q8_0": {0: 1.0},
    "Q4_K": {0: 1.0, 2: 7.5},
    "Q5_K": {0: 1.0, 2: 15.5},
    "Q6_K": {208: 1.0},
}
FLOATS = ("F32", "F16", "BF16")
BIAS_RMS = 2.0  # so large, beside outputs of about 1, that a wrong one or a missed clamp shows
MXFP4_RMS = 2.93  # of the 16 values, each equally likely, without their scale

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Expert:
    """Blocks of one expert: gate, up (intermediate_size, row bytes), down (hidden_size, row bytes),
    uint8; and the three biases, (rows of the projection,) float32, which are 0 where the layer has
    none.
    """

    gate: Array
    up: Array
    down: Array
    biases: tuple[Array, ...]


def random_blocks(blocks: str, rows: int, columns: int, rng: np.random.Generator) -> Array:
    """Blocks of a (rows, columns) matrix whose values have about the variance 1 / columns.

    Returns:
        (rows, bytes per row) uint8.
    """
    if blocks in FLOATS:
        values = rng.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)
        return quants.quantize(values, gguf.GGMLQuantizationType[blocks]).view(np.uint8)
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[blocks]]
    count = rows * columns // block_values
    data = rng.integers(0, 256, (count, block_bytes), np.uint8)
    if blocks == "MXFP4":
        exponent = round(-np.log2(MXFP4_RMS * columns**0.5))
        data[:, 0] = 127 + exponent + rng.integers(-1, 2, count)
        return data.reshape(rows, -1)
    size = rng.uniform(0.5, 1.5, count)  # scales differ, so that a mixed-up one shows
    write_scales(data, blocks, size)
    rms = float(np.sqrt(np.mean(dequantize(data[:1000], blocks).astype(np.float64) ** 2)))
    write_scales(data, blocks, size / (rms * columns**0.5))
    return data.reshape(rows, -1)


def write_scales(data: Array, blocks: str, size: Array) -> None:
    """Set the scales of (count, block bytes) `data` to `size`."""
    for offset, relative in SCALES[blocks].items():
        scale = (size * relative).astype(np.float16)
        data[:, offset : offset + 2] = scale.view(np.uint8).reshape(-1, 2)


def dequantize(data: Array, blocks: str) -> Array:
    """(rows, row bytes) uint8 to (rows, columns) float32."""
    return quants.dequantize(data, gguf.GGMLQuantizationType[blocks]).astype(np.float32, copy=False)


def write_weights(path: Path, shape: Shape, blocks: str, seed: int = 0) -> None:
    """The weight file: NUM_DISTINCT experts, each gate, up, down, then their biases if any."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as file:
        for _ in range(NUM_DISTINCT):
            for rows, columns in projections(shape):
                random_blocks(blocks, rows, columns, rng).tofile(file)
            if shape.biases:
                for rows, _ in projections(shape):
                    (rng.standard_normal(rows, np.float32) * np.float32(BIAS_RMS)).tofile(file)


def read_weights(path: Path, shape: Shape, blocks: str) -> list[Expert]:
    """The experts of a weight file, mapped, not copied."""
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[blocks]]
    file = np.memmap(path, np.uint8, "r")
    experts, offset = [], 0
    while offset < file.size:
        matrices, biases = [], []
        for rows, columns in projections(shape):
            row_bytes = columns // values * size
            matrices.append(file[offset : offset + rows * row_bytes].reshape(rows, row_bytes))
            offset += rows * row_bytes
        for rows, _ in projections(shape):
            end = offset + (4 * rows if shape.biases else 0)
            bias = file[offset:end].view(np.float32)
            biases.append(bias if shape.biases else np.zeros(rows, np.float32))
            offset = end
        gate, up, down = matrices
        experts.append(Expert(gate, up, down, tuple(biases)))
    return experts


def split_mxfp4(blocks: Array) -> tuple[Array, Array]:
    """MXFP4 blocks as checkpoints other than GGUF hold them: (rows, columns / 2) uint8 with
    neighbours in a byte, the first one low, and (rows, columns / 32) uint8 exponents.
    """
    block = blocks.reshape(len(blocks), -1, 17)
    return pair_nibbles(block[..., 1:]), np.ascontiguousarray(block[..., 0])


def pair_nibbles(halves: Array) -> Array:
    """(rows, groups, 16) bytes that hold values i and i + 16 of 32, as GGUF pairs them, to (rows,
    groups * 16) that hold 2 i and 2 i + 1.
    """
    codes = np.concatenate([halves & 15, halves >> 4], -1)
    pairs: Array = codes[..., 0::2] | codes[..., 1::2] << 4
    return pairs.reshape(len(halves), -1)


def projections(shape: Shape) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of gate, up and down."""
    wide, tall = (
        (shape.intermediate_size, shape.hidden_size),
        (shape.hidden_size, shape.intermediate_size),
    )
    return wide, wide, tall


def activate(activation: str, gate: Array, up: Array) -> Array:
    """What lies between gate, up and down: "silu" or "swigluoai" as kt_kernel defines them."""
    about = Activation(activation)
    alpha = 1.0
    if about.kind == "swigluoai":
        assert about.limit is not None
        assert about.alpha is not None
        alpha = about.alpha
        gate = np.minimum(gate, about.limit)
        up = np.clip(up, -about.limit, about.limit) + 1
    result: Array = gate / (1 + np.exp(-alpha * gate)) * up
    return result


def moe_layer(
    experts: list[Expert], blocks: str, activation: str, hidden: Array, ids: Array, scale: Array
) -> Array:
    """The layer in float32: sum over slots of scale * down(activation(gate x, up x)).

    Args:
        experts: of the weight file; expert id e is number e modulo their count.
        blocks: their ggml type.
        activation: see `activate`.
        hidden: (tokens, hidden_size) float32.
        ids: (tokens, top_k).
        scale: (tokens, top_k) routing weights.
    """
    out = np.zeros_like(hidden)
    for number, expert in enumerate(experts):
        weight = np.where(ids % len(experts) == number, scale, 0).sum(1, keepdims=True)
        gate_bias, up_bias, down_bias = expert.biases
        gate = hidden @ dequantize(expert.gate, blocks).T + gate_bias
        up = hidden @ dequantize(expert.up, blocks).T + up_bias
        inner = activate(activation, gate, up)
        out += weight * (inner @ dequantize(expert.down, blocks).T + down_bias)
    return out


def fp8_blocks(values: Array) -> tuple[Array, Array]:
    """E4M3 with one float32 scale per 128 x 128; (rows, columns) and (rows / 128, columns / 128),
    rounded up.
    """
    rows, columns = values.shape
    padded = np.pad(values, ((0, -rows % 128), (0, -columns % 128)))
    tiles = padded.reshape(padded.shape[0] // 128, 128, padded.shape[1] // 128, 128)
    scales = np.abs(tiles).max((1, 3)) / FP8_MAX
    codes = (tiles / scales[:, None, :, None]).astype(ml_dtypes.float8_e4m3fn)
    return np.ascontiguousarray(codes.reshape(padded.shape)[:rows, :columns]), scales
