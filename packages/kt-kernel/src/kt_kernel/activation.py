# SPDX-License-Identifier: Apache-2.0
"""The function between the up and the down projection of an MLP. Names it; kernels compute it."""

import math
from dataclasses import dataclass

from kt_kernel.scalars import float32

__all__ = ("Activation",)

_LIMITED = ("silu_clamped", "silu_post_clamped", "swigluoai")
_KINDS = ("silu", *_LIMITED, "gelu", "relu2")
# https://github.com/openai/gpt-oss (gpt_oss/torch/model.py); MiniMax-M3 has the same two.
_SWIGLUOAI_LIMIT, _SWIGLUOAI_ALPHA = 7.0, 1.702


@dataclass(frozen=True)
class Activation:
    """h = f(g, u) of the outputs g of the gate and u of the up projection. Immutable.

    With L = limit, clamp(x) = min(max(x, -L), L) and s = sigmoid, f is

    - "silu": g * s(g) * u (SwiGLU: Shazeer, 2020, arXiv 2002.05202)
    - "silu_clamped": silu of min(g, L), times clamp(u) (DeepSeek-V4, GLM-5.3, HY-V4)
    - "silu_post_clamped": min(silu(g), L) * clamp(u) (Step-3.5)
    - "swigluoai": m * s(alpha * m) * (clamp(u) + 1) with m = min(g, L) (gpt-oss, MiniMax-M3)
    - "gelu": gelu(g) * u with the tanh approximation (Gemma; Hendrycks and Gimpel, 2016)
    - "relu2": max(u, 0)^2, without a gate (Nemotron-H; So et al., 2021, arXiv 2109.08668)

    A NaN in g or u gives a NaN, whatever the limit.

    Args:
        kind: one of the names above.
        limit: L > 0, finite, also as float32. Needed by the two clamped silus; 7.0 for "swigluoai"
            if None; the others have none.
        alpha: of "swigluoai", finite; 1.702 if None. The others have none.

    Raises:
        ValueError: an unknown kind, a limit or alpha that the kind lacks, needs or cannot have.
    """

    kind: str = "silu"
    limit: float | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(
                f"[activation] kind must be one of {', '.join(_KINDS)}; got {self.kind!r}"
            )
        if self.kind == "swigluoai":
            if self.limit is None:
                object.__setattr__(self, "limit", _SWIGLUOAI_LIMIT)
            if self.alpha is None:
                object.__setattr__(self, "alpha", _SWIGLUOAI_ALPHA)
        elif self.alpha is not None:
            raise ValueError(f"[activation] {self.kind} must have no alpha; got {self.alpha!r}")
        if self.kind in _LIMITED:
            if self.limit is None or not 0 < float32("activation", "limit", self.limit) < math.inf:
                raise ValueError(
                    f"[activation] {self.kind} must have a finite limit above 0; got {self.limit!r}"
                )
        elif self.limit is not None:
            raise ValueError(f"[activation] {self.kind} must have no limit; got {self.limit!r}")
        if self.alpha is not None and not math.isfinite(float32("activation", "alpha", self.alpha)):
            raise ValueError(f"[activation] alpha must be finite; got {self.alpha!r}")

    @property
    def gated(self) -> bool:
        """Whether there is a gate projection."""
        return self.kind != "relu2"


def core_arguments(activation: Activation | str) -> tuple[str, float, float]:
    """kind, limit and alpha as the core takes them; a name stands for `Activation(name)`."""
    if isinstance(activation, str):
        activation = Activation(activation)
    return activation.kind, activation.limit or 0.0, activation.alpha or 0.0
