# SPDX-License-Identifier: Apache-2.0
"""Rotary position tables from config.json. Rotation itself is Ops.rope_write_kv."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kt_runtime.checkpoint.model_dir import ModelConfig
from kt_runtime.protocols import RopeTable


def rope_table(
    config: ModelConfig, head_dim: int, *, theta: float, partial: float = 1.0
) -> RopeTable:
    """cos and sin of positions [0, max_position_embeddings), float32 (positions, rotary_dim / 2).

    Float32 from the first step, as transformers does: angles near 1e5 radians have no more than 2-3
    correct digits then, and the model was trained with exactly those.

    Args:
        config: read from `rope_parameters` (transformers 5) or the top-level keys (transformers 4).
        theta, partial: rope_theta and partial_rotary_factor where config.json does not say.

    Raises:
        ValueError: `[checkpoint] …` for a rope type that is not in SCALINGS.
    """
    nested = config.section("rope_parameters", "rope_scaling")
    rope_type = nested.text("rope_type", "type", default="default")
    if rope_type not in SCALINGS:
        raise ValueError(
            f"[checkpoint] rope type must be one of {', '.join(SCALINGS)}; got {rope_type!r}"
        )
    base = nested.number("rope_theta", default=config.number("rope_theta", default=theta))
    share = nested.number(
        "partial_rotary_factor", default=config.number("partial_rotary_factor", default=partial)
    )
    rotary_dim = int(head_dim * share)
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise ValueError(
            f"[checkpoint] head_dim * partial_rotary_factor must be an even number in "
            f"[2, {head_dim}]; got {rotary_dim}"
        )
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    inverse_frequencies = SCALINGS[rope_type](1.0 / (base**exponents), nested)
    # One rule for every setting that makes them: a base or factor of 0, a NaN among divisors …
    usable = inverse_frequencies.isfinite() & (inverse_frequencies > 0)
    if not usable.all():
        raise ValueError(
            f"[checkpoint] rope settings must make positive finite frequencies; got "
            f"{inverse_frequencies[~usable][0].item()} with rope type {rope_type!r}"
        )
    positions = torch.arange(config.size("max_position_embeddings"), dtype=torch.float32)
    angles = positions[:, None] * inverse_frequencies
    return RopeTable(cos=angles.cos(), sin=angles.sin())


def _default(frequencies: Tensor, settings: ModelConfig) -> Tensor:
    return frequencies


def _linear(frequencies: Tensor, settings: ModelConfig) -> Tensor:
    """Positions divided by a factor (Chen et al., 2023, https://arxiv.org/abs/2306.15595)."""
    return frequencies / settings.number("factor")


def _llama3(frequencies: Tensor, settings: ModelConfig) -> Tensor:
    """Llama 3.1's: waves that turn more than high_freq_factor times in the original context stay,
    those that turn less than low_freq_factor times are stretched by factor, between both blend."""
    low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
    context = settings.size("original_max_position_embeddings")
    turns = context * frequencies / (2 * math.pi)
    stay = ((turns - low) / (high - low)).clamp(0, 1)
    return stay * frequencies + (1 - stay) * frequencies / settings.number("factor")


def _divided(frequencies: Tensor, settings: ModelConfig) -> Tensor:
    """Each frequency by its own divisor: what GGUF files store instead of the rule."""
    divisors = settings.get("divisors")
    numbers = isinstance(divisors, list) and all(isinstance(d, (int, float)) for d in divisors)
    if not numbers or len(divisors) != len(frequencies):
        raise ValueError(
            f"[checkpoint] divisors of rope must be {len(frequencies)} numbers; "
            f"got {divisors!s:.100}"
        )
    return frequencies / torch.tensor(divisors, dtype=torch.float32)


SCALINGS: Mapping[str, Callable[[Tensor, ModelConfig], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "divided": _divided,
}
