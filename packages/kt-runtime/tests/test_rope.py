# SPDX-License-Identifier: Apache-2.0
"""models.rope: the tables are transformers' own, to the last position, for both spellings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Glm4MoeConfig, LlamaConfig
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

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


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
)
def test_scaled_tables_are_those_of_transformers(scaling: dict[str, Any]) -> None:
    rope = {"rope_theta": 5e5} | scaling
    judge = LlamaRotaryEmbedding(
        LlamaConfig(rope_parameters=rope, head_dim=64, max_position_embeddings=MAX_POSITIONS)
    )
    cos, sin = judge(torch.zeros(1), torch.arange(MAX_POSITIONS)[None])
    table = rope_table(config(rope_parameters=rope), 64, theta=1.0)
    # An ulp of a frequency is an angle of 4e4 positions times 6e-8.
    torch.testing.assert_close(table.cos, cos[0, :, :32], rtol=0, atol=5e-3)
    torch.testing.assert_close(table.sin, sin[0, :, :32], rtol=0, atol=5e-3)
    plain = rope_table(config(rope_theta=5e5), 64, theta=1.0)
    assert (plain.cos - table.cos).abs().max() > 0.5
    # What GGUF files store: the divisor that turns one into the other, per frequency.
    frequencies = 5e5 ** (-torch.arange(0, 64, 2) / 64)
    divisors = (frequencies / judge.inv_freq).tolist()
    stored = {"rope_type": "divided", "rope_theta": 5e5, "divisors": divisors}
    table = rope_table(config(rope_parameters=stored), 64, theta=1.0)
    torch.testing.assert_close(table.cos, cos[0, :, :32], rtol=0, atol=5e-3)


def test_silence_means_the_model_s_own_defaults() -> None:
    silent = rope_table(config(), 64, theta=1e4, partial=0.5)
    spoken = rope_table(
        config(rope_theta=1e4, partial_rotary_factor=0.5), 64, theta=1.0, partial=1.0
    )
    assert silent.cos.shape == (MAX_POSITIONS, 16)
    assert torch.equal(silent.cos, spoken.cos)


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("spelling", ["rope_type", "type"])
def test_unknown_scaling_is_refused_in_both_spellings(key: str, spelling: str) -> None:
    with pytest.raises(ValueError, match=r"rope type must be one of default, .*; got 'yarn'"):
        rope_table(config(**{key: {spelling: "yarn", "factor": 4.0}}), 64, theta=1e4)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"rope_theta": 0}, "positive finite frequencies; got inf"),
        ({"rope_theta": -1e4}, "positive finite frequencies; got nan"),
        ({"rope_type": "linear", "factor": 0}, "positive finite frequencies; got inf"),
        ({"rope_type": "linear", "factor": -2}, "positive finite frequencies; got -"),
        (LLAMA3 | {"low_freq_factor": 4, "high_freq_factor": 4, "factor": 0}, "positive finite"),
        ({"rope_type": "divided", "divisors": "all"}, "must be 32 numbers; got all"),
        ({"rope_type": "divided", "divisors": [1.0] * 31}, "must be 32 numbers"),
        ({"rope_type": "divided", "divisors": [0.0] * 32}, "positive finite frequencies; got inf"),
        ({"rope_type": "divided", "divisors": [float("nan")] * 32}, "frequencies; got nan"),
    ],
)
def test_settings_that_make_no_rotation_are_refused(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rf"\[checkpoint\] .*{rule}"):
        rope_table(config(rope_parameters=settings), 64, theta=1e4)
