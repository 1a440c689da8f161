# SPDX-License-Identifier: Apache-2.0
"""One Llama layer at a time over many short documents, in float32 torch: what calibration needs.

Not an inference engine: no KV cache, no batch padding, no generation.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def gated_activation(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """silu(x gate^T) * (x up^T): (num_tokens, hidden) -> (num_tokens, intermediate)."""
    return F.silu(x @ gate.T) * (x @ up.T)


class CausalAttention:
    """Grouped-query attention with rotate-half RoPE, within each document.

    Args:
        config: The shared config.json fields.
        document_lengths: Number of tokens of each document, in the order they are concatenated.
    """

    def __init__(self, config: dict[str, Any], document_lengths: list[int]) -> None:
        self._head_dim: int = config["head_dim"]
        self._document_lengths = document_lengths
        half = torch.arange(0, self._head_dim, 2, dtype=torch.float32) / self._head_dim
        positions = torch.cat([torch.arange(length) for length in document_lengths])
        angles = torch.outer(positions.float(), config["rope_theta"] ** -half)
        self._cos = torch.cat([angles, angles], dim=-1).cos()[:, None, :]
        self._sin = torch.cat([angles, angles], dim=-1).sin()[:, None, :]

    def __call__(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """Attend.

        Args:
            x: (num_tokens, hidden), normed.
            weights: "q", "k", "v", "o" -> (out_features, in_features).

        Returns:
            (num_tokens, hidden), not yet added to the residual stream.
        """
        query, key, value = (
            (x @ weights[name].T).view(len(x), -1, self._head_dim) for name in "qkv"
        )
        parts = zip(
            *(
                torch.split(tensor, self._document_lengths)
                for tensor in (self._rotate(query), self._rotate(key), value)
            ),
            strict=True,
        )
        attended = [
            F.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                k.transpose(0, 1)[None],
                v.transpose(0, 1)[None],
                is_causal=True,
                enable_gqa=True,
            )[0]
            .transpose(0, 1)
            .flatten(1)
            for q, k, v in parts
        ]
        return torch.cat(attended) @ weights["o"].T

    def _rotate(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * self._cos + torch.cat([-second, first], dim=-1) * self._sin
