# SPDX-License-Identifier: Apache-2.0
"""How router logits become experts and weights. Names the rule; `Stream.route` follows it."""

from dataclasses import dataclass

from kt_kernel import _core
from kt_kernel.scalars import int32

__all__ = ("Router",)


@dataclass(frozen=True)
class Router:
    """The rule of a router. Immutable; the arrays it needs are arguments of `Stream.route`.

    Each logit x becomes a score; experts are selected; the scores of the selected, normalised and
    scaled, are their weights. The rules of published models, beside the defaults:

    - Qwen3-MoE, Mixtral, Hunyuan: none. OLMoE, Qwen2-MoE: norm "none"
    - gpt-oss, Granite-MoE (softmax over the selected logits): select_on "logit"
    - DeepSeek-V3, Kimi, GLM, Ling, HY-V3: "sigmoid", groups and scale as configured, bias
    - MiniMax-M2 and M3, Step-3.5: "sigmoid", norm_eps 0.0, bias
    - LFM2-MoE: "sigmoid", norm_eps 1e-6, bias
    - DeepSeek-V4: "sqrtsoftplus", scale 1.5, bias; its first layers select_on "hash" without one
    - DeepSeek-V2: norm "none", scale; groups with group_score "max"
    - ERNIE-4.5: norm "clamp", norm_eps 1e-12, bias
    - Mistral-4: groups and scale as configured
    - Llama-4: "sigmoid", select_on "logit", norm "none". The weight is meant for the *input* of the
      expert: that is the caller's to do.
    - Phi-3.5-MoE: "sparsemixer", select_on "logit", norm "none"
    - LongCat-Flash: norm "none", scale 6.0, bias. Its logits go on beyond the real experts: ids at
      or above their number are zero experts, which return their input. A caller replaces those ids
      by -1, which `MoE` skips, and adds the hidden state times the sum of their weights.

    Args:
        score: "softmax" over the experts, "sigmoid", "sqrtsoftplus" = sqrt(log(1 + e^x)), or
            "sparsemixer": for each slot, softmax over the experts that no earlier slot took and
            whose logit lies at most 2 * jitter_eps below that of the slot, relative to the larger
            magnitude (Liu et al., 2024, arXiv 2409.12136, at inference).
        select_on: the top-k of "score" or of "logit", plus the bias; or "hash": from the table.
            Logits tell experts apart whose scores round to the same number.
        num_groups: groups of neighbouring experts; must divide their number.
        topk_groups: groups that may be selected from (DeepSeek-V3 report, 2024, section 2.1.2).
        group_score: which groups: those with the largest "max" or "top2_sum", the sum of the two
            largest values of the group.
        norm: weights are divided by nothing ("none"), by their sum + norm_eps ("sum") or by
            max(sum, norm_eps) ("clamp").
        norm_eps: at least 0. The default matters only where all scores vanish: weights are then 0
            where 0.0 would give NaN.
        scale: factor on the weights.
        jitter_eps: at least 0, of "sparsemixer".

    Raises:
        ValueError: an unknown name, a number outside its range, "sparsemixer" that does not select
            on logits, or "hash" with groups.
    """

    score: str = "softmax"
    select_on: str = "score"
    num_groups: int = 1
    topk_groups: int = 1
    group_score: str = "top2_sum"
    norm: str = "sum"
    norm_eps: float = 1e-20
    scale: float = 1.0
    jitter_eps: float = 0.01

    def __post_init__(self) -> None:
        self.core()  # checks

    def core(self) -> _core.Router:
        """The rule as the core takes it."""
        return _core.Router(
            self.score,
            self.select_on,
            int32("router", "num_groups", self.num_groups),
            int32("router", "topk_groups", self.topk_groups),
            self.group_score,
            self.norm,
            self.norm_eps,
            self.scale,
            self.jitter_eps,
        )
