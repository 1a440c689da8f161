# SPDX-License-Identifier: Apache-2.0
"""The blocks that architectures are assembled from: attention, MLPs, layer, decoder. They call Ops
only.

A block holds packed weights and nothing that changes. `load` reads them by Hugging Face names under
a prefix. Shapes: x is (T, hidden_size) float32 everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kt_runtime.checkpoint.model_dir import ModelConfig
from kt_runtime.models.weights import WeightReader
from kt_runtime.protocols import Batch, KVLayer, ModelShape, Ops, Projection, RopeTable, Router

if TYPE_CHECKING:
    from torch import Tensor

GATE_UP_DOWN: Mapping[Projection, str] = {
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """num_heads query heads share num_kv_heads KV heads of head_dim."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def from_config(cls, config: ModelConfig) -> AttentionShape:
        """From the Hugging Face keys that all decoder models share."""
        hidden_size = config.size("hidden_size")
        num_heads = config.size("num_attention_heads")
        num_kv_heads = config.size("num_key_value_heads", default=num_heads)
        if num_heads % num_kv_heads:
            raise ValueError(
                f"[checkpoint] num_attention_heads must be a multiple of num_key_value_heads; "
                f"got {num_heads} and {num_kv_heads}"
            )
        head_dim = config.size("head_dim", default=hidden_size // num_heads)
        return cls(hidden_size, num_heads, num_kv_heads, head_dim)


@dataclass(frozen=True, slots=True)
class GqaAttention:
    """Causal grouped-query attention with rotary positions and, optionally, RMSNorm of every query
    and key head."""

    shape: AttentionShape
    rope: RopeTable
    q_proj: Any
    k_proj: Any
    v_proj: Any
    o_proj: Any
    q_norm: Any  # None: no norm
    k_norm: Any
    eps: float

    @classmethod
    def load(
        cls,
        weights: WeightReader,
        prefix: str,
        shape: AttentionShape,
        rope: RopeTable,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        qk_norm: bool = False,
        eps: float,
    ) -> GqaAttention:
        """Reads {q,k,v,o}_proj and, with qk_norm, {q,k}_norm."""
        q_size = shape.num_heads * shape.head_dim
        kv_size = shape.num_kv_heads * shape.head_dim

        def norm(name: str) -> Any:
            return weights.vector(f"{prefix}.{name}.weight", shape.head_dim) if qk_norm else None

        return cls(
            shape,
            rope,
            weights.linear(f"{prefix}.q_proj", q_size, shape.hidden_size, bias=qkv_bias),
            weights.linear(f"{prefix}.k_proj", kv_size, shape.hidden_size, bias=qkv_bias),
            weights.linear(f"{prefix}.v_proj", kv_size, shape.hidden_size, bias=qkv_bias),
            weights.linear(f"{prefix}.o_proj", shape.hidden_size, q_size, bias=out_bias),
            norm("q_norm"),
            norm("k_norm"),
            eps,
        )

    def forward(self, ops: Ops, x: Tensor, batch: Batch, kv: KVLayer, residual: Tensor) -> Tensor:
        """Writes the KV of these rows, then attends over all of them; added to the residual."""
        head_dim = self.shape.head_dim
        projected = ops.linears(x, (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (each.view(len(x), -1, head_dim) for each in projected)
        if self.q_norm is not None:
            q = ops.rms_norm(q, self.q_norm, self.eps)
            k = ops.rms_norm(k, self.k_norm, self.eps)
        ops.rope_write_kv(q, k, v, self.rope, batch, kv)
        attended = ops.attention(q, kv, batch, head_dim**-0.5)
        return ops.linear(attended.flatten(1), self.o_proj, residual)


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """down(silu(gate(x)) * up(x))."""

    gate_proj: Any
    up_proj: Any
    down_proj: Any

    @classmethod
    def load(
        cls, weights: WeightReader, prefix: str, hidden_size: int, intermediate_size: int
    ) -> DenseMlp:
        """Reads {gate,up,down}_proj."""
        return cls(
            weights.linear(f"{prefix}.gate_proj", intermediate_size, hidden_size),
            weights.linear(f"{prefix}.up_proj", intermediate_size, hidden_size),
            weights.linear(f"{prefix}.down_proj", hidden_size, intermediate_size),
        )

    def forward(self, ops: Ops, x: Tensor, residual: Tensor) -> Tensor:
        """Three matrices and a gate, added to the residual."""
        gate, up = ops.linears(x, (self.gate_proj, self.up_proj))
        return ops.linear(ops.swiglu(gate, up), self.down_proj, residual)


@dataclass(frozen=True, slots=True)
class ExpertsShape:
    """num_experts MLPs of intermediate_size, of which a token visits top_k."""

    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int

    def __post_init__(self) -> None:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"[checkpoint] num_experts_per_tok must not exceed the number of experts; "
                f"got {self.top_k} of {self.num_experts}"
            )


@dataclass(frozen=True, slots=True)
class SparseMoe:
    """Routed experts and, optionally, a shared expert that every token visits."""

    gate: Any
    router: Router
    num_experts: int
    experts: Any
    shared: DenseMlp | None

    @classmethod
    def load(
        cls,
        weights: WeightReader,
        prefix: str,
        shape: ExpertsShape,
        router: Router,
        *,
        projections: Mapping[Projection, str] = GATE_UP_DOWN,
        shared: DenseMlp | None = None,
    ) -> SparseMoe:
        """Reads gate and experts.{expert}.{projection}; the caller loads the shared expert."""
        gate = weights.linear(f"{prefix}.gate", shape.num_experts, shape.hidden_size, role="router")
        experts = weights.experts(
            f"{prefix}.experts.{{expert}}.{{projection}}",
            projections,
            num_experts=shape.num_experts,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            top_k=shape.top_k,
        )
        return cls(gate, router, shape.num_experts, experts, shared)

    def forward(self, ops: Ops, x: Tensor, residual: Tensor) -> Tensor:
        """Routed experts of each row and the shared one, added to the residual."""
        topk_ids, topk_weights = ops.route(ops.linear(x, self.gate), self.router)
        out = ops.experts(x, self.experts, topk_ids, topk_weights, residual)
        return out if self.shared is None else self.shared.forward(ops, x, out)


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Pre-norm residual layer: attention, then an MLP."""

    input_norm: Any
    attention: GqaAttention
    post_attention_norm: Any
    mlp: DenseMlp | SparseMoe
    eps: float

    @classmethod
    def load(
        cls,
        weights: WeightReader,
        prefix: str,
        attention: GqaAttention,
        mlp: DenseMlp | SparseMoe,
        eps: float,
    ) -> DecoderLayer:
        """Reads the two norms around the given blocks."""
        size = attention.shape.hidden_size
        return cls(
            weights.vector(f"{prefix}.input_layernorm.weight", size),
            attention,
            weights.vector(f"{prefix}.post_attention_layernorm.weight", size),
            mlp,
            eps,
        )

    def forward(self, ops: Ops, x: Tensor, batch: Batch, kv: KVLayer) -> Tensor:
        """Two residual steps."""
        x = self.attention.forward(ops, self._norm(ops, x, first=True), batch, kv, x)
        return self.mlp.forward(ops, self._norm(ops, x, first=False), x)

    def _norm(self, ops: Ops, x: Tensor, *, first: bool) -> Tensor:
        return ops.rms_norm(x, self.input_norm if first else self.post_attention_norm, self.eps)


@dataclass(frozen=True, slots=True)
class Decoder:
    """Embedding, layers, final norm, lm_head: a protocols.CausalLM."""

    shape: ModelShape
    embed_tokens: Any
    layers: Sequence[DecoderLayer]
    norm: Any
    lm_head: Any
    eps: float
    weight_formats: Mapping[str, str]

    @classmethod
    def load(
        cls,
        weights: WeightReader,
        config: ModelConfig,
        layers: Sequence[DecoderLayer],
    ) -> Decoder:
        """Reads what stands around the layers: model.embed_tokens, model.norm and lm_head (or the
        tied embedding)."""
        attention = layers[0].attention.shape
        sparse = next((x.mlp for x in layers if isinstance(x.mlp, SparseMoe)), None)
        vocab_size = config.size("vocab_size")
        tied = config.flag("tie_word_embeddings", default=False)
        embedding_name = "model.embed_tokens"
        return cls(
            ModelShape(
                vocab_size=vocab_size,
                num_layers=len(layers),
                num_kv_heads=attention.num_kv_heads,
                head_dim=attention.head_dim,
                max_position_embeddings=config.size("max_position_embeddings"),
                num_experts=0 if sparse is None else sparse.num_experts,
                top_k=0 if sparse is None else sparse.router.top_k,
            ),
            weights.embedding(f"{embedding_name}.weight", vocab_size, attention.hidden_size),
            layers,
            weights.vector("model.norm.weight", attention.hidden_size),
            weights.linear(
                embedding_name if tied else "lm_head",
                vocab_size,
                attention.hidden_size,
                role="lm_head",
            ),
            layers[0].eps,
            weights.formats,
        )

    def forward(self, ops: Ops, batch: Batch, kv: Sequence[KVLayer]) -> Tensor:
        """→ logits (R, vocab_size) float32 of batch.logits_rows, or of all rows."""
        x = ops.embedding(batch.input_ids, self.embed_tokens)
        for layer, pages in zip(self.layers, kv, strict=True):
            x = layer.forward(ops, x, batch, pages)
        if batch.logits_rows is not None:
            x = ops.take_rows(x, batch.logits_rows)
        return ops.linear(ops.rms_norm(x, self.norm, self.eps), self.lm_head)
