# SPDX-License-Identifier: Apache-2.0
"""What a GGUF architecture is called in Hugging Face's words: settings and tensor names. A new one
is a function and its line in ARCHITECTURES. Reads no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kt_runtime.checkpoint.model_dir import ModelConfig

# Tables of positions are made for all of them. The longest published context is half of this.
MAX_CONTEXT = 1 << 21

Shapes = Mapping[str, tuple[int, ...]]

MODEL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# Names within a layer. "{expert}" stands for the index along the first of three axes.
ATTENTION_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
DENSE_NAMES = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MIXTRAL_NAMES = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{expert}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{expert}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{expert}.w2",
}
QWEN3_MOE_NAMES = {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
    "ffn_up_exps": "mlp.experts.{expert}.up_proj",
    "ffn_down_exps": "mlp.experts.{expert}.down_proj",
}
# Settings that change the mathematics in ways no architecture here has, and the values that do not.
NEUTRAL: Mapping[str, tuple[float, ...]] = {
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "embedding_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),  # 1: softmax
    "expert_group_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scale_linear": (1.0,),  # how files of 2023 say rope.scaling
    "use_parallel_residual": (False,),
}


@dataclass(frozen=True, slots=True)
class Mapped:
    """An architecture in Hugging Face's words.

    Attributes:
        config: what its config.json would say.
        layer_names: GGUF's names within a layer → Hugging Face's, both without ".weight".
        interleaved: those of layer_names whose rows are stored for rotation of neighbours → number
            of heads. Hugging Face's, and our kernels', rotate halves.
    """

    config: dict[str, Any]
    layer_names: Mapping[str, str]
    interleaved: Mapping[str, int]


def map_architecture(metadata: ModelConfig, shapes: Shapes) -> Mapped:
    """The model's settings and names.

    Args:
        metadata: the file's keys.
        shapes: of the file's tensors; a setting that says how many of something there are must not
            promise more than these.

    Raises:
        ValueError: `[gguf] …` for an architecture or setting that is not supported, `[checkpoint]
            …` naming the key for a missing or malformed one.
    """
    name = metadata.text("general.architecture")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"[gguf] general.architecture must be one of {', '.join(sorted(ARCHITECTURES))}; "
            f"got {name!r}"
        )
    for key, allowed in NEUTRAL.items():
        value = metadata.get(f"{name}.{key}")
        if value is not None and value not in allowed:
            raise ValueError(f"[gguf] {name}.{key} must be {allowed[0]} or absent; got {value!r}")
    return ARCHITECTURES[name](metadata, shapes)


def _llama(metadata: ModelConfig, shapes: Shapes) -> Mapped:
    config = _common(metadata, shapes, "llama")
    num_experts = metadata.size("llama.expert_count", default=0, at_least=0)
    if num_experts:
        _check_experts(metadata, shapes, "llama.expert_count")
        config |= {
            "model_type": "mixtral",
            "num_local_experts": num_experts,
            "num_experts_per_tok": metadata.size("llama.expert_used_count"),
            "intermediate_size": metadata.size(
                "llama.expert_feed_forward_length", "llama.feed_forward_length"
            ),
        }
    else:
        config["model_type"] = "llama"
        config["attention_bias"] = "blk.0.attn_q.bias" in shapes
    interleaved = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    return Mapped(
        config, ATTENTION_NAMES | (MIXTRAL_NAMES if num_experts else DENSE_NAMES), interleaved
    )


def _qwen3moe(metadata: ModelConfig, shapes: Shapes) -> Mapped:
    config = _common(metadata, shapes, "qwen3moe")
    _check_experts(metadata, shapes, "qwen3moe.expert_count")
    config |= {
        "model_type": "qwen3_moe",
        "num_experts": metadata.size("qwen3moe.expert_count"),
        "num_experts_per_tok": metadata.size("qwen3moe.expert_used_count"),
        "moe_intermediate_size": metadata.size("qwen3moe.expert_feed_forward_length"),
        "norm_topk_prob": metadata.flag("qwen3moe.expert_weights_norm", default=True),
    }
    return Mapped(config, ATTENTION_NAMES | QWEN3_MOE_NAMES, {})


ARCHITECTURES: Mapping[str, Callable[[ModelConfig, Shapes], Mapped]] = {
    "llama": _llama,
    "qwen3moe": _qwen3moe,
}


def _common(metadata: ModelConfig, shapes: Shapes, name: str) -> dict[str, Any]:
    """What all decoder models have. The vocabulary is what the embedding holds: keys that say so
    too are optional."""
    num_layers = metadata.size(f"{name}.block_count")
    if f"blk.{num_layers - 1}.attn_norm.weight" not in shapes:
        raise ValueError(
            f"[gguf] {name}.block_count must be the number of layers in the file; got {num_layers} "
            f"without blk.{num_layers - 1}.attn_norm.weight"
        )
    embedding = shapes.get("token_embd.weight", ())
    if len(embedding) != 2:
        raise ValueError(
            f"[gguf] token_embd.weight must be a matrix; got {embedding or 'no such tensor'}"
        )
    num_heads = metadata.size(f"{name}.attention.head_count")
    hidden_size = metadata.size(f"{name}.embedding_length")
    head_dim = metadata.size(
        f"{name}.attention.key_length",
        f"{name}.rope.dimension_count",
        default=max(1, hidden_size // num_heads),
    )
    rows = shapes.get("blk.0.attn_q.weight", (0,))[0]
    if num_heads * head_dim != rows:
        raise ValueError(
            f"[gguf] {name}.attention.head_count heads of {head_dim} must be the {rows} rows of "
            f"blk.0.attn_q.weight; got {num_heads}"
        )
    context = metadata.size(f"{name}.context_length")
    if context > MAX_CONTEXT:
        raise ValueError(
            f"[gguf] {name}.context_length must be at most {MAX_CONTEXT}; got {context}"
        )
    for key in ("attention.value_length", "rope.dimension_count"):
        other = metadata.size(f"{name}.{key}", default=head_dim)
        if other != head_dim:
            raise ValueError(f"[gguf] {name}.{key} must be the head size {head_dim}; got {other}")
    return {
        "vocab_size": embedding[0],
        "hidden_size": hidden_size,
        "intermediate_size": metadata.size(f"{name}.feed_forward_length", default=hidden_size),
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": metadata.size(f"{name}.attention.head_count_kv", default=num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": metadata.number(f"{name}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(metadata, name),
        "tie_word_embeddings": "output.weight" not in shapes,
    }


def _rope(metadata: ModelConfig, name: str) -> dict[str, Any]:
    """Rotary settings; a rope_freqs tensor is added by who reads tensors. ggml's default base."""
    base = metadata.number(f"{name}.rope.freq_base", default=10000.0)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    scaling = metadata.text(f"{name}.rope.scaling.type", default="none")
    if scaling == "linear":
        rope["rope_type"] = scaling
        rope["factor"] = metadata.number(f"{name}.rope.scaling.factor")
    elif scaling != "none":
        raise ValueError(f"[gguf] {name}.rope.scaling.type must be none or linear; got {scaling!r}")
    return rope


def _check_experts(metadata: ModelConfig, shapes: Shapes, key: str) -> None:
    """Names of experts are made by counting: the count must be the tensors' own."""
    promised = metadata.size(key)
    held = shapes.get("blk.0.ffn_gate_exps.weight", shapes.get("blk.1.ffn_gate_exps.weight", ()))
    if len(held) != 3 or held[0] != promised:
        raise ValueError(
            f"[gguf] {key} must be the first axis of blk.0.ffn_gate_exps.weight, "
            f"{held or 'which is absent'}; got {promised}"
        )
