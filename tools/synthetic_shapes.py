# SPDX-License-Identifier: Apache-2.0
"""Shapes, tensor names and tensor types of the models that synthetic_model.py writes. Writes
nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gguf
from gguf import GGMLQuantizationType as Type

from kt_runtime.checkpoint import gguf_architectures as names

FLOATS = ("f32", "f16", "bf16")
MIXES = (*FLOATS, "q4_0", "q4_1", "q8_0", "q4_k", "q5_k", "q6_k", "q4_k_m")


@dataclass(frozen=True)
class Shape:
    """The numbers of a model; an expert count of 0 means a dense one."""

    arch: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    experts: int = 0
    experts_used: int = 0
    moe_intermediate: int = 0
    context: int = 32768
    rope_theta: float = 1e6
    tied: bool = False

    @property
    def feed_forward(self) -> int:
        """What both layouts call the width of a layer's MLP: Mixtral's are its experts."""
        return self.moe_intermediate if self.arch == "mixtral" else self.intermediate


PRESETS = {
    "qwen3-30b-a3b": Shape(
        "qwen3_moe", 48, 2048, 32, 4, 128, 6144, 151936, 128, 8, 768, context=40960
    ),
    "qwen3-235b-a22b": Shape(
        "qwen3_moe", 94, 4096, 64, 4, 128, 12288, 151936, 128, 8, 1536, context=40960
    ),
    "mixtral-8x7b": Shape("mixtral", 32, 4096, 32, 8, 128, 14336, 32000, 8, 2, 14336),
    "glm-4.5-air": Shape("glm4_moe", 46, 4096, 96, 8, 128, 10944, 151552, 128, 8, 1408),
    "llama-3.2-1b": Shape(
        "llama", 16, 2048, 32, 8, 64, 8192, 128256, rope_theta=5e5, tied=True, context=8192
    ),
    "smollm2-135m": Shape(
        "llama", 30, 576, 9, 3, 64, 1536, 49152, rope_theta=1e5, tied=True, context=8192
    ),
}
GGUF_ARCHITECTURES = {"llama": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe"}


@dataclass(frozen=True)
class Tensor:
    """One tensor by its Hugging Face name; with `experts` that many, under names with
    {expert}."""

    name: str
    shape: tuple[int, ...]
    kind: str  # "matrix", "norm" or "zeros"; "router" and "embedding" are matrices too
    experts: int = 0


def tensors_of(shape: Shape) -> Iterator[Tensor]:
    """All tensors of the model, in the order of a forward pass."""
    hidden, q, kv = (
        shape.hidden,
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
    )

    def mlp(prefix: str, width: int, parts: str, experts: int = 0) -> Iterator[Tensor]:
        gate, up, down = parts.split()
        for part, size in ((gate, (width, hidden)), (up, (width, hidden)), (down, (hidden, width))):
            yield Tensor(f"{prefix}.{part}.weight", size, "matrix", experts)

    yield Tensor("model.embed_tokens.weight", (shape.vocab, hidden), "embedding")
    for i in range(shape.layers):
        layer = f"model.layers.{i}"
        yield Tensor(f"{layer}.input_layernorm.weight", (hidden,), "norm")
        for name, size in (("q", (q, hidden)), ("k", (kv, hidden)), ("v", (kv, hidden))):
            yield Tensor(f"{layer}.self_attn.{name}_proj.weight", size, "matrix")
        if shape.arch == "qwen3_moe":
            for name in ("q", "k"):
                yield Tensor(f"{layer}.self_attn.{name}_norm.weight", (shape.head_dim,), "norm")
        yield Tensor(f"{layer}.self_attn.o_proj.weight", (hidden, q), "matrix")
        yield Tensor(f"{layer}.post_attention_layernorm.weight", (hidden,), "norm")
        dense = not shape.experts or (shape.arch == "glm4_moe" and i == 0)
        projections = "gate_proj up_proj down_proj"
        if dense:
            yield from mlp(f"{layer}.mlp", shape.intermediate, projections)
            continue
        block = f"{layer}.block_sparse_moe" if shape.arch == "mixtral" else f"{layer}.mlp"
        yield Tensor(f"{block}.gate.weight", (shape.experts, hidden), "router")
        if shape.arch == "glm4_moe":
            yield Tensor(f"{block}.gate.e_score_correction_bias", (shape.experts,), "zeros")
            yield from mlp(f"{block}.shared_experts", shape.moe_intermediate, projections)
        parts = "w1 w3 w2" if shape.arch == "mixtral" else projections
        yield from mlp(f"{block}.experts.{{expert}}", shape.moe_intermediate, parts, shape.experts)
    yield Tensor("model.norm.weight", (hidden,), "norm")
    if not shape.tied:
        yield Tensor("lm_head.weight", (shape.vocab, hidden), "matrix")


def gguf_type(tensor: Tensor, name: str, mix: str, shape: Shape) -> Type:
    """As llama.cpp's own mixes have it: heads in Q6_K; of Q4_K_M also the values and downs of some
    layers."""
    if len(tensor.shape) == 1 or tensor.kind == "router":
        return Type.F32
    if mix in FLOATS:
        return Type[mix.upper()]
    kind = Type.Q4_K if mix == "q4_k_m" else Type[mix.upper()]
    if name == "output.weight":
        kind = Type.Q6_K
    elif mix == "q4_k_m" and ("attn_v" in name or "ffn_down" in name):
        i, n = int(name.split(".")[1]), shape.layers
        if i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2:
            kind = Type.Q6_K
    ragged = tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]
    return Type.Q8_0 if ragged else kind


def gguf_name(name: str, shape: Shape) -> str:
    """GGUF's name of a Hugging Face one."""
    stem, _, kind = name.rpartition(".")
    of_model = {hf: own for own, hf in names.MODEL_NAMES.items()}
    if stem in of_model:
        return f"{of_model[stem]}.{kind}"
    tables = {
        "llama": names.DENSE_NAMES,
        "mixtral": names.MIXTRAL_NAMES,
        "qwen3_moe": names.QWEN3_MOE_NAMES,
    }
    of_layer = {hf: own for own, hf in (names.ATTENTION_NAMES | tables[shape.arch]).items()}
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{of_layer[rest]}.{kind}"
