# SPDX-License-Identifier: Apache-2.0
"""Rotary position tables from config.json. Rotation itself is Ops.rope_write_kv."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kt_runtime.checkpoint.model_dir import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]


class ComputedRope:
    """protocols.RopeTable, computed when it is first asked for: by torch, which packing a model
    does not wait for. Thread-safe."""

    def __init__(
        self, base: float, exponents: Floats, scale: Callable[[Floats], Floats], positions: int
    ) -> None:
        """scale: makes the frequencies from base ** -exponents."""
        self._base = base
        self._exponents = exponents
        self._scale = scale
        self._positions = positions

    @property
    def cos(self) -> Tensor:
        """(positions, len(exponents)) float32."""
        return self._tables[0]

    @property
    def sin(self) -> Tensor:
        """(positions, len(exponents)) float32."""
        return self._tables[1]

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        import torch

        # torch's power and no other: numpy's differs in the last bit, which late positions turn
        # into thousandths.
        powers = 1.0 / (self._base ** torch.from_numpy(self._exponents))
        frequencies = torch.from_numpy(self._scale(powers.numpy()))
        angles = torch.arange(self._positions, dtype=torch.float32)[:, None] * frequencies
        return angles.cos(), angles.sin()


def rope_table(
    config: ModelConfig, head_dim: int, *, theta: float, partial: float = 1.0
) -> ComputedRope:
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
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)

    def scale(frequencies: Floats) -> Floats:
        return SCALINGS[rope_type](frequencies, nested).astype(np.float32)

    with np.errstate(all="ignore"):
        nearly = scale((1 / np.float32(base) ** exponents).astype(np.float32))
    # One rule for every setting that makes them: a base or factor of 0, a NaN among divisors …
    usable = np.isfinite(nearly) & (nearly > 0)
    if not usable.all():
        raise ValueError(
            f"[checkpoint] rope settings must make positive finite frequencies; got "
            f"{nearly[~usable][0]} with rope type {rope_type!r}"
        )
    return ComputedRope(base, exponents, scale, config.size("max_position_embeddings"))


def _default(frequencies: Floats, settings: ModelConfig) -> Floats:
    return frequencies


def _linear(frequencies: Floats, settings: ModelConfig) -> Floats:
    """Positions divided by a factor (Chen et al., 2023, https://arxiv.org/abs/2306.15595)."""
    return frequencies / np.float32(settings.number("factor"))


def _llama3(frequencies: Floats, settings: ModelConfig) -> Floats:
    """Llama 3.1's: waves that turn more than high_freq_factor times in the original context stay,
    those that turn less than low_freq_factor times are stretched by factor, between both blend."""
    low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
    context = settings.size("original_max_position_embeddings")
    turns = np.float32(context) * frequencies / np.float32(2 * math.pi)
    stay: Floats = ((turns - np.float32(low)) / np.float32(high - low)).clip(0, 1)
    stretched: Floats = frequencies / np.float32(settings.number("factor"))
    return stay * frequencies + (np.float32(1) - stay) * stretched


def _divided(frequencies: Floats, settings: ModelConfig) -> Floats:
    """Each frequency by its own divisor: what GGUF files store instead of the rule."""
    divisors = settings.get("divisors")
    numbers = isinstance(divisors, list) and all(isinstance(d, (int, float)) for d in divisors)
    if not numbers or len(divisors) != len(frequencies):
        raise ValueError(
            f"[checkpoint] divisors of rope must be {len(frequencies)} numbers; "
            f"got {divisors!s:.100}"
        )
    each: Floats = np.array(divisors, np.float32)
    return frequencies / each


SCALINGS: Mapping[str, Callable[[Floats, ModelConfig], Floats]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "divided": _divided,
}
