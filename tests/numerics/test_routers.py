# SPDX-License-Identifier: Apache-2.0
"""kt_kernel's route against the routers of transformers: the same experts, weights within 1e-6.

Each router gets random weights and hidden states; its own logits go through `Stream.route` with the
rule that `Router` documents for its model. bfloat16 and how a layer uses the weights are not here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kt_kernel import Experts, MoE, Router, Stream, ThreadPool

NUM_TOKENS, HIDDEN, VOCAB = 64, 32, 100
BIAS = "e_score_correction_bias"


@dataclass(frozen=True)
class Published:
    """A router class of transformers, what its config says, and our rule."""

    model: str  # models/<model>/modeling_<model>.py
    class_name: str
    top_k: int
    rule: Router
    settings: dict[str, Any] = field(default_factory=dict)
    bias: str | None = None  # where the class keeps its selection bias, or "argument" of forward
    num_experts: int = 64

    def build(self) -> torch.nn.Module:
        """The router with random weights, logits of standard deviation 2 and biases of 0.1."""
        config = SimpleNamespace(
            **{
                "hidden_size": HIDDEN,
                "vocab_size": VOCAB,
                # One number under all the names that configs have for it.
                **dict.fromkeys(("num_experts", "num_local_experts"), self.num_experts),
                **dict.fromkeys(("num_experts_per_tok", "moe_topk"), self.top_k),
                **dict.fromkeys(("routed_scaling_factor", "router_scaling_factor"), 2.5),
                "norm_topk_prob": True,
                "scoring_func": "sqrtsoftplus",
                "moe_norm_min": 1e-12,
                "router_jitter_noise": 0.01,
                "input_jitter_noise": 0.0,
            }
            | self.settings
        )
        module = importlib.import_module(f"transformers.models.{self.model}.modeling_{self.model}")
        router: torch.nn.Module = getattr(module, self.class_name)(config).eval()
        for name, tensor in [*router.named_parameters(), *router.named_buffers()]:
            if tensor.is_floating_point():
                torch.nn.init.normal_(tensor, std=0.1 if "bias" in name else 2 / HIDDEN**0.5)
        return router


@pytest.fixture(scope="module")
def stream() -> Stream:
    return Stream(ThreadPool(1))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def route(
    stream: Stream, logits: Tensor, top_k: int, rule: Router, **arrays: Tensor | None
) -> tuple[Tensor, Tensor]:
    ids = torch.empty(len(logits), top_k, dtype=torch.int32)
    weights = torch.empty(len(logits), top_k)
    stream.route(logits.float().contiguous(), ids, weights, rule, **arrays)
    return ids, weights


def assert_same_choice(
    ids: Tensor, weights: Tensor, expected_ids: Tensor, expected_weights: Tensor
) -> None:
    """Equal up to the order of the slots."""
    order, expected_order = ids.argsort(-1), expected_ids.argsort(-1)
    assert torch.equal(ids.gather(-1, order).long(), expected_ids.gather(-1, expected_order).long())
    torch.testing.assert_close(
        weights.gather(-1, order),
        expected_weights.gather(-1, expected_order),
        rtol=1e-6,
        atol=1e-6,
    )


DEEPSEEK_GROUPS = Router("sigmoid", num_groups=8, topk_groups=4, scale=2.5)
ONE_GROUP = Router("sigmoid", scale=2.5)
SIGMOID = Router("sigmoid", norm_eps=0.0)
GROUPS = {"n_group": 8, "topk_group": 4}
GROUPLESS = {"n_group": 1, "topk_group": 1}

PUBLISHED = [
    # R1: softmax, then top-k
    Published("qwen3_moe", "Qwen3MoeTopKRouter", 8, Router()),
    Published("qwen3_next", "Qwen3NextTopKRouter", 10, Router()),
    Published("qwen3_5_moe", "Qwen3_5MoeTopKRouter", 8, Router()),
    Published("mixtral", "MixtralTopKRouter", 2, Router(), num_experts=8),
    Published("hunyuan_v1_moe", "HunYuanMoEV1Gate", 8, Router()),
    Published(
        "olmoe", "OlmoeTopKRouter", 8, Router(norm="none"), settings={"norm_topk_prob": False}
    ),
    Published(
        "qwen2_moe",
        "Qwen2MoeTopKRouter",
        4,
        Router(norm="none"),
        settings={"norm_topk_prob": False},
        num_experts=60,
    ),
    # R2: top-k, then softmax; gpt-oss has a bias in its logits
    Published("gpt_oss", "GptOssTopKRouter", 4, Router(select_on="logit"), num_experts=32),
    Published("granitemoe", "GraniteMoeTopKRouter", 8, Router(select_on="logit")),
    # R3: sigmoid with selection bias and group limit
    Published("deepseek_v3", "DeepseekV3TopkRouter", 8, DEEPSEEK_GROUPS, GROUPS, BIAS),
    Published("bailing_hybrid", "BailingHybridTopkRouter", 8, DEEPSEEK_GROUPS, GROUPS, BIAS),
    Published("glm4_moe", "Glm4MoeTopkRouter", 8, ONE_GROUP, GROUPLESS, BIAS),
    Published("kimi_linear", "KimiLinearTopkRouter", 8, ONE_GROUP, GROUPLESS, BIAS),
    Published("hy_v3", "HYV3TopKRouter", 8, ONE_GROUP, bias="argument"),
    # R4: sigmoid with selection bias, divided by the bare sum
    Published("minimax_m2", "MiniMaxM2TopKRouter", 8, SIGMOID, bias="argument"),
    Published("minimax_m3_vl", "MiniMaxM3VLTopKRouter", 4, SIGMOID, bias=BIAS),
    Published("step3p7", "Step3p7TopKRouter", 8, SIGMOID, bias=BIAS),
    # R5: square root of softplus
    Published(
        "deepseek_v4", "DeepseekV4TopKRouter", 6, Router("sqrtsoftplus", scale=2.5), {}, BIAS
    ),
    # R7: softmax, never normalised, groups by their best expert
    Published(
        "deepseek_v2",
        "DeepseekV2TopkRouter",
        6,
        Router(num_groups=8, topk_groups=3, group_score="max", norm="none", scale=2.5),
        {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3},
    ),
    Published(
        "deepseek_v2",
        "DeepseekV2TopkRouter",
        6,
        Router(norm="none", scale=2.5),
        {"topk_method": "greedy"} | GROUPLESS,
    ),
    # R8: softmax with selection bias, divided by a clamped sum
    Published(
        "ernie4_5_moe",
        "Ernie4_5_MoeTopKRouter",
        6,
        Router(norm="clamp", norm_eps=1e-12),
        bias=f"moe_statics.{BIAS}",
    ),
    # R9: softmax with group limit
    Published(
        "mistral4", "Mistral4TopkRouter", 4, Router(num_groups=8, topk_groups=4, scale=2.5), GROUPS
    ),
    Published(
        "mistral_large4",
        "MistralLarge4TextTopkRouter",
        4,
        Router(num_groups=8, topk_groups=4, scale=2.5),
        GROUPS,
    ),
    # R11: sparsemixer
    Published(
        "phimoe",
        "PhimoeTopKRouter",
        2,
        Router("sparsemixer", "logit", norm="none"),
        num_experts=16,
    ),
    # R12: logits of zero experts follow those of the real ones
    Published(
        "longcat_flash",
        "LongcatFlashTopkRouter",
        12,
        Router(norm="none", scale=2.5),
        {"n_routed_experts": 48, "zero_expert_num": 16},
        BIAS,
    ),
    # Not among the twelve kinds: a sum with a visible epsilon
    Published(
        "lfm2_moe",
        "Lfm2MoeTopKRouter",
        4,
        Router("sigmoid", norm_eps=1e-6, scale=2.5),
        {"use_expert_bias": True},
        "argument",
    ),
]


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: f"{p.model}-{p.rule.group_score}")
@torch.no_grad()
def test_experts_and_weights_are_those_of_transformers(
    published: Published, stream: Stream
) -> None:
    router, hidden = published.build(), torch.randn(NUM_TOKENS, HIDDEN)
    bias, arguments = None, []
    if published.bias == "argument":
        bias = 0.1 * torch.randn(published.num_experts)
        arguments = [bias]
    elif published.bias is not None:
        bias = router.state_dict()[published.bias].flatten()
    logits, expected_weights, expected_ids = router(hidden, *arguments)
    assert logits.std() > 1
    ids, weights = route(stream, logits, published.top_k, published.rule, bias=bias)
    assert_same_choice(ids, weights, expected_ids, expected_weights)
    if bias is not None:  # and it decided something
        without, _ = route(stream, logits, published.top_k, published.rule)
        assert not torch.equal(without.sort(-1).values, ids.sort(-1).values)


@torch.no_grad()
def test_hash_router(stream: Stream) -> None:
    """R6: the experts of DeepSeek-V4's first layers follow from the token."""
    rule = Router("sqrtsoftplus", "hash", scale=2.5)
    router = Published("deepseek_v4", "DeepseekV4HashRouter", 6, rule).build()
    table = torch.stack([torch.randperm(64)[:6] for _ in range(VOCAB)])
    router.tid2eid.copy_(table)
    hidden, tokens = torch.randn(NUM_TOKENS, HIDDEN), torch.randint(VOCAB, (NUM_TOKENS,))
    logits, expected_weights, expected_ids = router(hidden, tokens)
    arrays = {"input_ids": tokens.int(), "hash_table": table.int()}
    ids, weights = route(stream, logits, 6, rule, **arrays)
    assert torch.equal(ids.long(), expected_ids)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_llama4_router(stream: Stream) -> None:
    """R10: a row of sigmoids, 0 where an expert is not chosen."""
    rule = Router("sigmoid", "logit", norm="none")
    router = Published("llama4", "Llama4Router", 1, rule, num_experts=16).build()
    scores, logits = router(torch.randn(NUM_TOKENS, HIDDEN))
    ids, weights = route(stream, logits, 1, rule)
    expected_weights, expected_ids = scores.max(-1, keepdim=True)
    assert_same_choice(ids, weights, expected_ids, expected_weights)


@torch.no_grad()
def test_zero_experts_as_router_documents_them(stream: Stream) -> None:
    """R12 to the end: ids of zero experts become -1, their weights meet the hidden state."""
    real, zero, inner, top_k = 6, 3, 16, 4
    settings = {
        "n_routed_experts": real,
        "zero_expert_num": zero,
        "expert_ffn_hidden_size": inner,
        "hidden_act": "silu",
    }
    rule = Router(norm="none", scale=2.5)
    layer = Published("longcat_flash", "LongcatFlashMoE", top_k, rule, settings).build()
    hidden = torch.randn(NUM_TOKENS, HIDDEN)
    logits, _, _ = layer.router(hidden)
    bias = layer.router.e_score_correction_bias
    ids, weights = route(stream, logits, top_k, rule, bias=bias)

    gate, up = layer.experts.gate_up_proj[:real].chunk(2, dim=1)
    down, pool = layer.experts.down_proj.detach(), ThreadPool(1)
    experts = Experts.pack(gate.contiguous(), up.contiguous(), down, format="float32", pool=pool)
    moe = MoE(experts, top_k=top_k, pool=pool)
    out = hidden * (weights * (ids >= real)).sum(-1, keepdim=True)
    moe.forward(hidden, torch.where(ids < real, ids, -1), weights, out, accumulate=True)
    assert (ids >= real).any()
    torch.testing.assert_close(out, layer(hidden), rtol=1e-5, atol=1e-5)
