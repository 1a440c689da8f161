# SPDX-License-Identifier: Apache-2.0
"""What is compared: MoE layer shapes, weight formats and what each peer calls them. No weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import gguf

from kt_kernel import formats

CACHES = 10  # so many times the caches, what they keep from call to call is below a tenth


@dataclass(frozen=True)
class Shape:
    """One MoE layer: its routed experts.

    Attributes:
        num_layers: copies that calls take in turn, so that all weights are beyond any cache.
        activation: kt_kernel's name of it.
        biases: whether every projection adds some, as gpt-oss's do.
    """

    name: str
    num_experts: int
    hidden_size: int
    intermediate_size: int
    top_k: int
    num_layers: int = 1
    activation: str = "silu"
    biases: bool = False

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
        Shape("gpt-oss", 128, 2880, 2880, 4, activation="swigluoai", biases=True),
    )
}


@dataclass(frozen=True)
class Format:
    """One weight format.

    Attributes:
        name: what it is called here; for kt_kernel unless `kt_name` says otherwise.
        blocks: ggml type of the weight file, which every peer reads.
        packed: kt_kernel takes the file's blocks as they are; otherwise it packs their values.
        llama_cpp: llama.cpp has the format, or one of the same bits; its type is `blocks`.
        reference: the reference kernel's methods that read as many bytes.
        kt_name: what kt_kernel calls it, if not `name`.
        group_size: kt_kernel's, where a format has the choice.
    """

    name: str
    blocks: str
    packed: bool = False
    llama_cpp: bool = True
    reference: tuple[str, ...] = ()
    kt_name: str = ""
    group_size: int = 32

    @property
    def kernel_format(self) -> str:
        """kt_kernel's name."""
        return self.kt_name or self.name

    @property
    def bits_per_weight(self) -> float:
        """Of kt_kernel's storage, scales included; one a row is next to nothing."""
        facts = formats.FORMATS[self.kernel_format]
        if facts.group_sizes and self.group_size == 0:
            return facts.value_bits
        return facts.bits_per_weight(self.group_size)

    def fits(self, shape: Shape) -> bool:
        """Whether both widths of the layer are whole blocks."""
        values, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.blocks]]
        return shape.hidden_size % values == 0 and shape.intermediate_size % values == 0


FORMATS = {
    row.name: row
    for row in (
        Format("float32", "F32"),
        Format("f16", "F16"),
        Format("bf16", "BF16", reference=("BF16",)),
        Format("fp8", "BF16", llama_cpp=False, reference=("FP8",)),
        Format("int8", "Q8_0", reference=("LLAMAFILE",)),
        Format("int8-row", "Q8_0", reference=("LLAMAFILE",), kt_name="int8", group_size=0),
        Format("int4", "Q4_0", reference=("LLAMAFILE", "RAWINT4")),
        Format("q8_0", "Q8_0", packed=True, reference=("LLAMAFILE",)),
        Format("q4_0", "Q4_0", packed=True, reference=("LLAMAFILE", "RAWINT4")),
        Format("q4_1", "Q4_1", packed=True),
        Format("q4_k", "Q4_K", packed=True, reference=("LLAMAFILE",)),
        Format("q5_k", "Q5_K", packed=True, reference=("LLAMAFILE",)),
        Format("q6_k", "Q6_K", packed=True, reference=("LLAMAFILE",)),
        Format("mxfp4", "MXFP4", packed=True, reference=("MXFP4",)),
    )
}
# What is measured unless the command line says otherwise: some six minutes for a shape.
DEFAULT_FORMATS = {
    "qwen3-30b": "q4_0,int4,q4_k,q6_k,mxfp4,q8_0,int8,bf16,fp8",
    "deepseek-v3": "q4_0,fp8",
    "gpt-oss": "mxfp4,q4_0,q8_0,bf16",
}


def max_error(method: str) -> float:
    """Relative RMS error that rounding explains: of activations to int8, and, where values are
    packed anew into four or eight bits, of weights. A wrong expert or scale gives 0.3 and more.
    """
    return 0.2 if method in ("int4", "int8", "int8-row", "fp8", "FP8") else 0.04


def sized(shape: Shape, bits_per_weight: float, max_bytes: float, cache_bytes: int) -> Shape:
    """The shape with as many experts as `max_bytes` holds, and as many layers as ten times the
    caches need: below that, weights would come from there.
    """
    expert_bytes = shape.weights_per_expert * bits_per_weight / 8
    affordable = int(max_bytes / expert_bytes) // 8 * 8
    num_experts = min(shape.num_experts, max(affordable, 2 * shape.top_k))
    num_layers = math.ceil(CACHES * cache_bytes / (num_experts * expert_bytes))
    return replace(shape, num_experts=num_experts, num_layers=num_layers)
