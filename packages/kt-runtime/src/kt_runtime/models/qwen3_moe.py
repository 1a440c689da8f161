# SPDX-License-Identifier: Apache-2.0
"""Qwen3-MoE (model_type "qwen3_moe"): GQA with normed heads, softmax router, dense layers where
config.json says."""

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
    config.only("use_sliding_window", False)
    attention = AttentionShape.from_config(config)
    hidden_size = attention.hidden_size
    experts = ExpertsShape(
        num_experts=config.size("num_experts", "num_local_experts"),
        top_k=config.size("num_experts_per_tok"),
        hidden_size=hidden_size,
        intermediate_size=config.size("moe_intermediate_size"),
    )
    router = Router(
        top_k=experts.top_k,
        score="softmax",
        normalize=config.flag("norm_topk_prob", default=False),
    )
    rope = rope_table(config, attention.head_dim, theta=1e4)
    eps = config.number("rms_norm_eps", default=1e-6)
    bias = config.flag("attention_bias", default=False)
    dense_layers = config.sizes("mlp_only_layers")
    sparse_step = config.size("decoder_sparse_step", default=1)

    def mlp(prefix: str, index: int) -> DenseMlp | SparseMoe:
        if index in dense_layers or (index + 1) % sparse_step:
            return DenseMlp.load(weights, prefix, hidden_size, config.size("intermediate_size"))
        return SparseMoe.load(weights, prefix, experts, router)

    def layer(prefix: str, index: int) -> DecoderLayer:
        self_attention = GqaAttention.load(
            weights,
            f"{prefix}.self_attn",
            attention,
            rope,
            qkv_bias=bias,
            out_bias=bias,
            qk_norm=True,
            eps=eps,
        )
        return DecoderLayer.load(weights, prefix, self_attention, mlp(f"{prefix}.mlp", index), eps)

    layers = [layer(f"model.layers.{i}", i) for i in range(config.size("num_hidden_layers"))]
    return Decoder.load(weights, config, layers)
