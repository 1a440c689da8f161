# SPDX-License-Identifier: Apache-2.0
"""kt_kernel's activate against the expert classes and activation functions of transformers.

The judge computes in float64 with its own code. Which projections feed it is not here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import GptOssConfig
from transformers.activations import ACT2FN

from kt_kernel import Activation, Stream, ThreadPool

CONFIG = SimpleNamespace(
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 1),
    **dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size"), 8),
    **dict.fromkeys(("hidden_act", "hidden_activation"), "silu"),
    swiglu_limit=2.0,
    swiglu_alpha=1.5,
)


def apply_gate(
    model: str, class_name: str, *arguments: object, config: object = CONFIG
) -> Callable[[Tensor], Tensor]:
    """The function of [gate, up] that the experts of a model have."""
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    with torch.device("meta"):  # the weights do not matter
        experts = getattr(module, class_name)(config, *arguments)
    function: Callable[[Tensor], Tensor] = experts._apply_gate
    return function


def concatenated(
    function: Callable[[Tensor], Tensor],
) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda gate, up: function(torch.cat([gate, up], dim=-1))


def interleaved(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda gate, up: function(torch.stack([gate, up], dim=-1).flatten(-2))


def gated(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda gate, up: ACT2FN[name](gate) * up


CLAMPED = Activation("silu_clamped", limit=2.0)


@pytest.mark.parametrize(
    ("activation", "judge"),
    [
        (Activation("silu"), lambda: gated("silu")),
        (CLAMPED, lambda: concatenated(apply_gate("deepseek_v4", "DeepseekV4Experts"))),
        (CLAMPED, lambda: concatenated(apply_gate("glm5_next", "Glm5NextTextExperts"))),
        (CLAMPED, lambda: concatenated(apply_gate("hy_v4", "HYV4Experts"))),
        (
            Activation("silu_post_clamped", limit=2.0),
            lambda: concatenated(apply_gate("step3p7", "Step3p7Experts", 2.0)),
        ),
        (
            Activation("swigluoai"),
            lambda: interleaved(apply_gate("gpt_oss", "GptOssExperts", config=GptOssConfig())),
        ),
        (
            Activation("swigluoai", limit=2.0, alpha=1.5),
            lambda: concatenated(apply_gate("minimax_m3_vl", "MiniMaxM3VLExperts")),
        ),
        (Activation("gelu"), lambda: gated("gelu_pytorch_tanh")),
        (Activation("relu2"), lambda: lambda _, up: ACT2FN["relu2"](up)),
    ],
    ids=[
        "silu",
        "deepseek_v4",
        "glm5_next",
        "hy_v4",
        "step3p7",
        "gpt_oss",
        "minimax_m3",
        "gelu",
        "relu2",
    ],
)
@torch.no_grad()
def test_values_are_those_of_transformers(
    activation: Activation, judge: Callable[[], Callable[[Tensor, Tensor], Tensor]]
) -> None:
    torch.manual_seed(0)
    gate, up = 5 * torch.randn(2, 33, 57)
    assert (gate.abs() > 7).any()  # every clamp is reached
    out = torch.empty_like(up)
    stream = Stream(ThreadPool(1))
    stream.activate(gate if activation.gated else None, up, out, activation=activation)
    expected = judge()(gate.double(), up.double()).float()
    # 1 + tanh of the judge's gelu has 16 digits after the point, not 16 digits.
    torch.testing.assert_close(out, expected, rtol=4e-6, atol=1e-13)
