# SPDX-License-Identifier: Apache-2.0
"""What is compared: MoE layer shapes, weight formats and what each peer calls them. No weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import gguf

CACHES = 10  # so many times the caches, what they keep from call to call is below a tenth


@dataclass(frozen=True)
class Shape:
    """One MoE layer: routed experts only, silu, no biases.

    Attributes:
        num_layers: copies that calls take in turn, so that all weights are beyond any cache.
    """

    name: str
    num_experts: int
    hidden_size: int
    intermediate_size: int
    top_k: int
    num_layers: int = 1

    @property
    def weights_per_expert(self) -> int:
        """Gate, up and down together."""
        return 3 * self.hidden_size * self.intermediate_size

    def operations(self, num_tokens: int) -> int:
        """Multiplications and additions of one call."""
        return 2 * num_tokens * self.top_k * self.weights_per_expert


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("qwen3-30b", 128, 2048, 768, 8),
        Shape("deepseek-v3", 256, 7168, 2048, 8),
        Shape("gpt-oss", 128, 2880, 2880, 4),
    )
}


@dataclass(frozen=True)
class Format:
    """One weight format.

    Attributes:
        name: what kt_kernel calls it.
        blocks: ggml type of the weight file, which every peer reads.
        packed: kt_kernel takes the file's blocks as they are; otherwise it packs their values.
        llama_cpp: llama.cpp has the format; its type is `blocks`.
        reference: the reference kernel's method for it.
    """

    name: str
    blocks: str
    packed: bool = False
    llama_cpp: bool = True
    reference: str | None = None

    @property
    def bits_per_weight(self) -> float:
        """Of the weight file, scales included."""
        values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.blocks]]
        return 8 * size / values

    @property
    def max_error(self) -> float:
        """Relative RMS error that rounding explains: of activations to int8, and, where values are
        packed anew into four or eight bits, of weights. A wrong expert or scale gives 0.3 and more.
        """
        return 0.2 if self.name in ("int4", "int8", "fp8") else 0.04

    def fits(self, shape: Shape) -> bool:
        """Whether both widths of the layer are whole blocks."""
        values, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.blocks]]
        return shape.hidden_size % values == 0 and shape.intermediate_size % values == 0


FORMATS = {
    row.name: row
    for row in (
        Format("float32", "F32"),
        Format("f16", "F16"),
        Format("bf16", "BF16", reference="BF16"),
        Format("fp8", "BF16", llama_cpp=False, reference="FP8"),
        Format("int8", "Q8_0", reference="LLAMAFILE"),
        Format("int4", "Q4_0", reference="RAWINT4"),
        Format("q8_0", "Q8_0", packed=True, reference="LLAMAFILE"),
        Format("q4_0", "Q4_0", packed=True, reference="LLAMAFILE"),
        Format("q4_1", "Q4_1", packed=True),
        Format("q4_k", "Q4_K", packed=True, reference="LLAMAFILE"),
        Format("q5_k", "Q5_K", packed=True, reference="LLAMAFILE"),
        Format("q6_k", "Q6_K", packed=True, reference="LLAMAFILE"),
        Format("mxfp4", "MXFP4", packed=True, reference="MXFP4"),
    )
}


def sized(shape: Shape, weight_format: Format, max_bytes: int, cache_bytes: int) -> Shape:
    """The shape with as many experts as `max_bytes` holds, and as many layers as ten times the
    caches need: below that, weights would come from there.
    """
    expert_bytes = shape.weights_per_expert * weight_format.bits_per_weight / 8
    affordable = int(max_bytes / expert_bytes) // 8 * 8
    num_experts = min(shape.num_experts, max(affordable, 2 * shape.top_k))
    num_layers = math.ceil(CACHES * cache_bytes / (num_experts * expert_bytes))
    return replace(shape, num_experts=num_experts, num_layers=num_layers)
