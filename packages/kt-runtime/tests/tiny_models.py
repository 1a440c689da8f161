# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints written by transformers, which is also their judge. Not a test; no KT
code.

transformers initialises routers, biases and buffers to zeros or constants, which would leave
routing degenerate, so every parameter and floating-point buffer is drawn again, wide enough that
experts and heads really differ.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

BASE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Sizes that fill no panel, block or group of any kernel.
RAGGED: dict[str, Any] = {
    "vocab_size": 509,
    "hidden_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 24,
}
# Rows of whole K-quant blocks.
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "head_dim": 64,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
}
LLAMA = BASE | {"intermediate_size": 96}
MIXTRAL = BASE | {"intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 2}
QWEN3 = BASE | {
    "intermediate_size": 96,
    "moe_intermediate_size": 64,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
}
GLM4 = BASE | {
    "intermediate_size": 96,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 0,
}
# name → (model_type, settings). The first of each model_type is the plain one.
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "llama-ragged-tied-biases-scaled": (
        "llama",
        LLAMA
        | RAGGED
        | {
            "intermediate_size": 40,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama-wide": ("llama", LLAMA | WIDE),
    "mixtral": ("mixtral", MIXTRAL),
    "mixtral-ragged-tied": (
        "mixtral",
        MIXTRAL | RAGGED | {"intermediate_size": 40, "tie_word_embeddings": True},
    ),
    "mixtral-one-expert": (
        "mixtral",
        MIXTRAL | {"num_local_experts": 1, "num_experts_per_tok": 1, "num_key_value_heads": 1},
    ),
    "qwen3_moe": ("qwen3_moe", QWEN3),
    "qwen3_moe-ragged-biases-dense": (
        "qwen3_moe",
        QWEN3
        | RAGGED
        | {
            "num_hidden_layers": 4,
            "moe_intermediate_size": 40,
            "attention_bias": True,
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
        },
    ),
    "qwen3_moe-wide": ("qwen3_moe", QWEN3 | WIDE),
    "glm4_moe": ("glm4_moe", GLM4 | {"use_qk_norm": True}),
    "glm4_moe-ragged-groups-biases": (
        "glm4_moe",
        GLM4
        | RAGGED
        | {
            "moe_intermediate_size": 40,
            "n_routed_experts": 12,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 2,
            "num_experts_per_tok": 4,
            "attention_bias": True,
            "norm_topk_prob": False,
        },
    ),
}


def make_checkpoint(name: str, directory: str | Path, seed: int = 1) -> tuple[Any, Path]:
    """Writes TINY[name] to `directory` as float32 safetensors → (transformers model, directory)."""
    model_type, settings = TINY[name]
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**settings)).eval().float()
    randomize(model, seed)
    model.save_pretrained(directory)
    return model, Path(directory)


@cache
def tiny_checkpoint(name: str, seed: int = 1) -> tuple[Any, Path]:
    """make_checkpoint, once per process; the directory goes when the process ends. Do not write
    into it."""
    directory = TemporaryDirectory(prefix="kt-tiny-")
    _directories.append(directory)
    return make_checkpoint(name, directory.name, seed)


_directories: list[TemporaryDirectory[str]] = []


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int) -> None:
    """Draws every parameter and floating-point buffer again, except the rotary frequencies."""
    generator = torch.Generator().manual_seed(seed)
    tied = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point() or "inv_freq" in name or tensor.data_ptr() in tied:
            continue
        tied.add(tensor.data_ptr())
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            tensor.copy_(noise * tensor.shape[-1] ** -0.5)
        elif "norm" in name:
            tensor.copy_(1 + noise * 0.1)
        else:
            tensor.copy_(noise * 0.1)


def random_ids(count: int, vocab_size: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, (count,), generator=generator).tolist()


@torch.no_grad()
def expected_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """transformers' logits (num_tokens, vocab_size) float32 of one sequence."""
    return model(torch.tensor([ids])).logits[0].float()
