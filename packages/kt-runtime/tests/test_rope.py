# SPDX-License-Identifier: Apache-2.0
"""models.rope: the tables are transformers' own, to the last position, for both spellings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Glm4MoeConfig
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRotaryEmbedding

from kt_runtime.checkpoint.model_dir import ModelConfig
from kt_runtime.models.rope import rope_table

MAX_POSITIONS = 40_000


def config(**values: Any) -> ModelConfig:
    return ModelConfig({"max_position_embeddings": MAX_POSITIONS} | values, Path("config.json"))


@pytest.mark.parametrize(("theta", "partial"), [(1e4, 0.5), (1e6, 1.0), (5e6, 0.75)])
def test_tables_are_those_of_transformers_at_every_position(theta: float, partial: float) -> None:
    head_dim = 64
    rope = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": partial}
    judge = Glm4MoeRotaryEmbedding(
        Glm4MoeConfig(
            rope_parameters=rope, head_dim=head_dim, max_position_embeddings=MAX_POSITIONS
        )
    )
    cos, sin = judge(torch.zeros(1), torch.arange(MAX_POSITIONS)[None])
    half = int(head_dim * partial) // 2
    nested = rope_table(config(rope_parameters=rope), head_dim, theta=1.0)
    flat = rope_table(
        config(rope_theta=theta, partial_rotary_factor=partial, rope_scaling=None),
        head_dim,
        theta=1.0,
    )
    for table in (nested, flat):
        # The angles are equal to the bit; cos and sin may differ by an ulp between vector lanes.
        torch.testing.assert_close(table.cos, cos[0, :, :half], rtol=0, atol=2e-7)
        torch.testing.assert_close(table.sin, sin[0, :, :half], rtol=0, atol=2e-7)


def test_silence_means_the_model_s_own_defaults() -> None:
    silent = rope_table(config(), 64, theta=1e4, partial=0.5)
    spoken = rope_table(
        config(rope_theta=1e4, partial_rotary_factor=0.5), 64, theta=1.0, partial=1.0
    )
    assert silent.cos.shape == (MAX_POSITIONS, 16)
    assert torch.equal(silent.cos, spoken.cos)


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("spelling", ["rope_type", "type"])
def test_scaled_positions_are_refused_in_both_spellings(key: str, spelling: str) -> None:
    with pytest.raises(ValueError, match="rope type must be 'default'; got 'yarn'"):
        rope_table(config(**{key: {spelling: "yarn", "factor": 4.0}}), 64, theta=1e4)
