# SPDX-License-Identifier: Apache-2.0
"""`smolmoe-sparse`: the dense model rewritten as a glm4_moe whose router was fitted on real text.

Truly sparse and therefore not equal to the dense model; its quality is measured by perplexity.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from kt_demo_model.dense import DenseModel
from kt_demo_model.fitting import (
    NeuronSplit,
    Router,
    bf16_values,
    fit_router,
    refit_down,
    split_neurons,
)
from kt_demo_model.llama_forward import CausalAttention, gated_activation, rms_norm

NUM_EXPERTS = 16
TOP_K = 8
EXPERT_SIZE = 64
SHARED_SIZE = 512  # 512 + 16 x 64 = 1536, the dense FFN; a token uses 512 + 8 x 64 = 67 % of it
# The first layers stay dense, as in GLM-4.5. Held-out perplexity with 1, 2 and 3 of them was 32.6,
# 31.8 and 30.9 in windows of 512 tokens, where the dense model has 21.2. The whole text in one
# context, built on a Zen 4: 31.0 with 3 and 28.8 with 4 (dense: 20.1).
NUM_DENSE_LAYERS = 4
MAX_DOCUMENT_TOKENS = 512
SEED = 0
DOCUMENT_SEPARATOR = "\n%%\n"


def sparse_config(model: DenseModel) -> dict[str, Any]:
    """config.json in the form transformers 5 writes (`rope_parameters`)."""
    shared = {key: value for key, value in model.config.items() if key != "rope_theta"}
    return shared | {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "dtype": "bfloat16",
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": model.config["rope_theta"],
            "partial_rotary_factor": 1.0,
        },
        "use_qk_norm": False,
        "n_routed_experts": NUM_EXPERTS,
        "num_experts_per_tok": TOP_K,
        "moe_intermediate_size": EXPERT_SIZE,
        "n_shared_experts": SHARED_SIZE // EXPERT_SIZE,
        "first_k_dense_replace": NUM_DENSE_LAYERS,
        "norm_topk_prob": True,
        "routed_scaling_factor": float(TOP_K),
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 0,
    }


def tokenize_documents(text: str, tokenizer: Tokenizer) -> list[list[int]]:
    """Split a text at its separators, and what is long into pieces; returns token ids."""
    pieces = []
    for document in text.split(DOCUMENT_SEPARATOR):
        ids = tokenizer.encode(document).ids
        pieces += [
            ids[start : start + MAX_DOCUMENT_TOKENS]
            for start in range(0, len(ids), MAX_DOCUMENT_TOKENS)
        ]
    return pieces


@torch.inference_mode()
def sparse_tensors(
    model: DenseModel, documents: list[list[int]], step: Callable[[], None]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the checkpoint's tensors in layer order; every layer is fitted when its turn comes.

    Calibration runs through the layers already rewritten, so that each layer is fitted on what it
    will see. Weights are rounded to bf16 before fitting; the correction biases stay float32.

    Args:
        model: The dense model.
        documents: Calibration token ids.
        step: Called after each layer.
    """
    weights = {name: bf16_values(torch.from_numpy(array)) for name, array in model.tensors.items()}
    eps = model.config["rms_norm_eps"]
    attention = CausalAttention(model.config, [len(ids) for ids in documents])
    generator = torch.Generator().manual_seed(SEED)
    embedding = weights["model.embed_tokens.weight"]
    residual = embedding[torch.tensor([token for ids in documents for token in ids])]
    yield "model.embed_tokens.weight", embedding.bfloat16()
    for layer in range(model.config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        own = {
            name.removeprefix(prefix).removesuffix(".weight"): weight
            for name, weight in weights.items()
            if name.startswith(prefix)
        }
        projections = {name: own[f"self_attn.{name}_proj"] for name in "qkvo"}
        residual += attention(rms_norm(residual, own["input_layernorm"], eps), projections)
        x = rms_norm(residual, own["post_attention_layernorm"], eps)
        gate, up, down = (own[f"mlp.{kind}_proj"] for kind in ("gate", "up", "down"))
        activations = gated_activation(x, gate, up)
        for name, weight in own.items():
            if layer < NUM_DENSE_LAYERS or not name.startswith("mlp."):
                yield f"{prefix}{name}.weight", weight.bfloat16()
        if layer < NUM_DENSE_LAYERS:
            residual += activations @ down.T
        else:
            # Relative error is what the next norm lets through: a few huge tokens must not rule.
            token_weights = 1 / residual.norm(dim=1, keepdim=True)
            weighted = activations * (token_weights / token_weights.mean())
            split = split_neurons(weighted, down, SHARED_SIZE, NUM_EXPERTS, generator)
            router = fit_router(x, activations, token_weights, down, split, TOP_K)
            features = activations[:, split.order]
            routed = router.dense_weights(x).repeat_interleave(EXPERT_SIZE, dim=1)
            features[:, SHARED_SIZE:] *= routed
            new_down = bf16_values(
                refit_down(features, token_weights, down[:, split.order], activations @ down.T)
            )
            residual += features @ new_down.T
            yield from _moe_tensors(f"{prefix}mlp", gate, up, new_down, split, router)
        step()
    yield "model.norm.weight", weights["model.norm.weight"].bfloat16()


def _moe_tensors(
    prefix: str, gate: Tensor, up: Tensor, down: Tensor, split: NeuronSplit, router: Router
) -> Iterator[tuple[str, Tensor]]:
    yield f"{prefix}.gate.weight", router.weight.bfloat16()
    yield f"{prefix}.gate.e_score_correction_bias", router.bias
    sizes = [SHARED_SIZE] + [EXPERT_SIZE] * NUM_EXPERTS
    shared_down, *expert_downs = torch.split(down, sizes, dim=1)
    yield from _ffn_tensors(f"{prefix}.shared_experts", gate, up, shared_down, split.shared)
    for expert, (own_down, neurons) in enumerate(zip(expert_downs, split.routed, strict=True)):
        yield from _ffn_tensors(f"{prefix}.experts.{expert}", gate, up, own_down, neurons)


def _ffn_tensors(
    prefix: str, gate: Tensor, up: Tensor, own_down: Tensor, neurons: Tensor
) -> Iterator[tuple[str, Tensor]]:
    yield f"{prefix}.gate_proj.weight", gate[neurons].bfloat16()
    yield f"{prefix}.up_proj.weight", up[neurons].bfloat16()
    yield f"{prefix}.down_proj.weight", own_down.bfloat16().contiguous()
