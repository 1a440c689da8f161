# SPDX-License-Identifier: Apache-2.0
"""Mixtral (model_type "mixtral"): GQA without biases, softmax router normalised over the chosen, no
shared expert."""

from __future__ import annotations

from kt_runtime.checkpoint.model_dir import ModelConfig
from kt_runtime.models.blocks import (
    AttentionShape,
    Decoder,
    DecoderLayer,
    ExpertsShape,
    GqaAttention,
    SparseMoe,
)
from kt_runtime.models.rope import rope_table
from kt_runtime.models.weights import WeightReader
from kt_runtime.protocols import Projection, Router

PROJECTIONS: dict[Projection, str] = {"gate": "w1", "up": "w3", "down": "w2"}


def build(config: ModelConfig, weights: WeightReader) -> Decoder:
    """Assembles the model from config.json and packs its weights."""
    config.only("hidden_act", "silu")
    config.only("sliding_window", None)
    attention = AttentionShape.from_config(config)
    experts = ExpertsShape(
        num_experts=config.size("num_local_experts", "num_experts"),
        top_k=config.size("num_experts_per_tok"),
        hidden_size=attention.hidden_size,
        intermediate_size=config.size("intermediate_size"),
    )
    router = Router(top_k=experts.top_k, score="softmax", normalize=True)
    rope = rope_table(config, attention.head_dim, theta=1e6)
    eps = config.number("rms_norm_eps", default=1e-5)

    def layer(prefix: str) -> DecoderLayer:
        return DecoderLayer.load(
            weights,
            prefix,
            GqaAttention.load(weights, f"{prefix}.self_attn", attention, rope, eps=eps),
            SparseMoe.load(
                weights, f"{prefix}.block_sparse_moe", experts, router, projections=PROJECTIONS
            ),
            eps,
        )

    layers = [layer(f"model.layers.{i}") for i in range(config.size("num_hidden_layers"))]
    return Decoder.load(weights, config, layers)
