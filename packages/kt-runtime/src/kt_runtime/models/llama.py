# SPDX-License-Identifier: Apache-2.0
"""Llama (model_type "llama"): GQA, a dense SwiGLU MLP in every layer, no experts."""

from __future__ import annotations

from kt_runtime.checkpoint.model_dir import ModelConfig
from kt_runtime.models.blocks import AttentionShape, Decoder, DecoderLayer, DenseMlp, GqaAttention
from kt_runtime.models.rope import rope_table
from kt_runtime.models.weights import WeightReader


def build(config: ModelConfig, weights: WeightReader) -> Decoder:
    """Assembles the model from config.json and packs its weights."""
    config.only("hidden_act", "silu")
    config.only("mlp_bias", False)
    attention = AttentionShape.from_config(config)
    hidden_size = attention.hidden_size
    intermediate_size = config.size("intermediate_size")
    rope = rope_table(config, attention.head_dim, theta=1e4)
    eps = config.number("rms_norm_eps", default=1e-6)
    bias = config.flag("attention_bias", default=False)

    def layer(prefix: str) -> DecoderLayer:
        return DecoderLayer.load(
            weights,
            prefix,
            GqaAttention.load(
                weights,
                f"{prefix}.self_attn",
                attention,
                rope,
                qkv_bias=bias,
                out_bias=bias,
                eps=eps,
            ),
            DenseMlp.load(weights, f"{prefix}.mlp", hidden_size, intermediate_size),
            eps,
        )

    layers = [layer(f"model.layers.{i}") for i in range(config.size("num_hidden_layers"))]
    return Decoder.load(weights, config, layers)
