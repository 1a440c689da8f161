# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of random weights for the engine's benchmarks, made anew in each process. Small: what
is measured is the engine, not memory (tools/synthetic_model.py writes models of real shape).

Results of different commits are comparable only if the shapes stay: add some, do not change them.
"""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

# 13 million weights: arithmetic outweighs Python, and loading takes well under a second.
MIXTURE = {
    "hidden_size": 512,
    "num_hidden_layers": 2,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 256,
    "vocab_size": 8192,
}
# So little arithmetic that a step is Python and wake-ups.
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_experts": 4,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 32,
    "vocab_size": 512,
}
_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}


@cache
def checkpoint(**shape: int) -> Path:
    """A qwen3_moe directory in bf16, deleted when the process ends."""
    path = Path(tempfile.mkdtemp(prefix="kt-bench-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    config = {
        "model_type": "qwen3_moe",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (path / "config.json").write_text(json.dumps(config | _HEADS | shape))
    generator = torch.Generator().manual_seed(1)
    hidden, vocab = shape["hidden_size"], shape["vocab_size"]
    q_size, kv_size = 8 * 64, 2 * 64
    tensors: dict[str, torch.Tensor] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        values = torch.randn(rows, columns, generator=generator) * columns**-0.5
        tensors[f"{name}.weight"] = values.bfloat16()

    def norm(name: str, size: int) -> None:
        tensors[f"{name}.weight"] = torch.ones(size, dtype=torch.bfloat16)

    matrix("model.embed_tokens", vocab, hidden)
    for i in range(shape["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        attention = f"{layer}.self_attn"
        for name, rows, columns in (
            ("q_proj", q_size, hidden),
            ("k_proj", kv_size, hidden),
            ("v_proj", kv_size, hidden),
            ("o_proj", hidden, q_size),
        ):
            matrix(f"{attention}.{name}", rows, columns)
        norm(f"{attention}.q_norm", 64)
        norm(f"{attention}.k_norm", 64)
        norm(f"{layer}.input_layernorm", hidden)
        norm(f"{layer}.post_attention_layernorm", hidden)
        matrix(f"{layer}.mlp.gate", shape["num_experts"], hidden)
        width = shape["moe_intermediate_size"]
        for expert in range(shape["num_experts"]):
            matrix(f"{layer}.mlp.experts.{expert}.gate_proj", width, hidden)
            matrix(f"{layer}.mlp.experts.{expert}.up_proj", width, hidden)
            matrix(f"{layer}.mlp.experts.{expert}.down_proj", hidden, width)
    norm("model.norm", hidden)
    matrix("lm_head", vocab, hidden)
    save_file(tensors, path / "model.safetensors")
    return path
