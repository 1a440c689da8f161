# SPDX-License-Identifier: Apache-2.0
"""What GGUF's quantised blocks mean, in torch: for weights that no kernel takes as they are. The
kernels read the same blocks themselves.

Layouts: ggml's ggml-common.h. Every function takes (n, bytes) uint8 blocks and gives (n, elements)
float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kt_runtime.protocols import QuantTensor

# Elements unpacked at once: enough that calling torch costs little beside, few enough that the
# temporaries take some MB.
_CHUNK = 1 << 19


def dequantize(weight: QuantTensor) -> Tensor:
    """The float32 values, (rows, columns), of any format in BLOCK_FORMATS."""
    rows, columns = weight.shape
    unpack = BLOCK_FORMATS[weight.format]
    out = torch.empty(rows, columns)
    step = max(1, _CHUNK // columns)
    for begin in range(0, rows, step):
        # A copy: torch has no read-only tensors.
        blocks = torch.from_numpy(weight.blocks[begin : begin + step].copy())
        elements = 256 if weight.format.endswith("_k") else 32
        values = unpack(blocks.reshape(len(blocks) * columns // elements, -1))
        out[begin : begin + step] = values.view(len(blocks), columns)
    return out


def _q4_0(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 2:]).float().sub_(8).mul_(_half(blocks, 0))  # no more temporaries


def _q4_1(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 4:]) * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8) * _half(blocks, 0)


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bit_scales(blocks)
    values = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).view(-1, 8, 32)
    return (values * scales - minima).view(-1, 256)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bit_scales(blocks)
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).view(-1, 8, 32)
    shifts = torch.arange(8, dtype=torch.uint8)[:, None]
    high = (blocks[:, None, 16:48] >> shifts) & 1
    return ((low | (high << 4)) * scales - minima).view(-1, 256)


def _q6_k(blocks: Tensor) -> Tensor:
    low = blocks[:, :128].reshape(-1, 2, 1, 2, 32)
    low = torch.cat((low & 15, low >> 4), dim=2).view(-1, 2, 4, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    values = (low | (high << 4)).view(torch.int8) - 32
    scales = blocks[:, 192:208].view(torch.int8) * _half(blocks, 208)
    scaled: Tensor = values.view(-1, 16, 16) * scales[:, :, None]
    return scaled.view(-1, 256)


BLOCK_FORMATS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q8_0": _q8_0,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at this byte of each block, (n, 1) float32."""
    return blocks[:, at : at + 2].view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """All low nibbles of the last axis, then all high ones."""
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def _six_bit_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima of the eight sub-blocks of Q4_K and Q5_K, (n, 8, 1) float32 each."""
    first, second, third = blocks[:, 4:16].reshape(-1, 3, 4).unbind(1)
    scales = torch.cat((first & 63, (third & 15) | ((first >> 6) << 4)), dim=1)
    minima = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), dim=1)
    scale, minimum = _half(blocks, 0), _half(blocks, 2)
    return (scales * scale)[:, :, None], (minima * minimum)[:, :, None]
