# SPDX-License-Identifier: Apache-2.0
"""GLM-4.5 family (model_type "glm4_moe"): partly rotated GQA, grouped sigmoid router with a
choice-only bias, shared experts, first layers dense. Not its multi-token-prediction layers: they
stand after num_hidden_layers and are skipped."""

from __future__ import annotations

from kt_runtime.checkpoint.model_dir import ModelConfig
from kt_runtime.models.blocks import (
    AttentionShape,
    Decoder,
    DecoderLayer,
    DenseMlp,
    ExpertsShape,
    GqaAttention,
    SparseMoe,
)
from kt_runtime.models.rope import rope_table
from kt_runtime.models.weights import WeightReader
from kt_runtime.protocols import Router


def build(config: ModelConfig, weights: WeightReader) -> Decoder:
    """Assembles the model from config.json and packs its weights."""
    config.only("hidden_act", "silu")
    attention = AttentionShape.from_config(config)
    hidden_size = attention.hidden_size
    experts = ExpertsShape(
        num_experts=config.size("n_routed_experts", "num_local_experts"),
        top_k=config.size("num_experts_per_tok"),
        hidden_size=hidden_size,
        intermediate_size=config.size("moe_intermediate_size"),
    )
    rope = rope_table(config, attention.head_dim, theta=1e4, partial=0.5)
    eps = config.number("rms_norm_eps", default=1e-5)
    bias = config.flag("attention_bias", default=False)
    qk_norm = config.flag("use_qk_norm", default=False)
    num_dense_layers = config.size("first_k_dense_replace", default=1, at_least=0)
    num_shared = config.size("n_shared_experts", default=1, at_least=0)

    def sparse(prefix: str) -> SparseMoe:
        router = Router(
            top_k=experts.top_k,
            score="sigmoid",
            bias=weights.vector(f"{prefix}.gate.e_score_correction_bias", experts.num_experts),
            num_groups=config.size("n_group", default=1),
            topk_groups=config.size("topk_group", default=1),
            normalize=config.flag("norm_topk_prob", default=True),
            scale=config.number("routed_scaling_factor", default=1.0),
        )
        shared = None
        if num_shared:  # several shared experts are stored as one wide MLP
            width = experts.intermediate_size * num_shared
            shared = DenseMlp.load(weights, f"{prefix}.shared_experts", hidden_size, width)
        return SparseMoe.load(weights, prefix, experts, router, shared=shared)

    def layer(prefix: str, index: int) -> DecoderLayer:
        self_attention = GqaAttention.load(
            weights,
            f"{prefix}.self_attn",
            attention,
            rope,
            qkv_bias=bias,
            qk_norm=qk_norm,
            eps=eps,
        )
        mlp: DenseMlp | SparseMoe
        if index < num_dense_layers:
            width = config.size("intermediate_size")
            mlp = DenseMlp.load(weights, f"{prefix}.mlp", hidden_size, width)
        else:
            mlp = sparse(f"{prefix}.mlp")
        return DecoderLayer.load(weights, prefix, self_attention, mlp, eps)

    layers = [layer(f"model.layers.{i}", i) for i in range(config.size("num_hidden_layers"))]
    return Decoder.load(weights, config, layers)
