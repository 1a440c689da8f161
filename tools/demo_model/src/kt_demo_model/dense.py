# SPDX-License-Identifier: Apache-2.0
"""The dense Llama inside the GGUF file, as Hugging Face names and float32 arrays. Runs nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

# GGUF name of a layer's tensor -> Hugging Face name; both without the layer prefix and ".weight".
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


@dataclass(frozen=True)
class DenseModel:
    """A Llama with tied embeddings.

    Attributes:
        config: The fields of config.json that every architecture here shares.
        tensors: Hugging Face Llama names -> float32 arrays, (out_features, in_features).
        metadata: The GGUF metadata, key -> value.
    """

    config: dict[str, Any]
    tensors: dict[str, NDArray[np.float32]]
    metadata: dict[str, Any]


def read_dense(path: Path, step: Callable[[], None]) -> DenseModel:
    """Read and dequantise a GGUF file of architecture `llama`.

    Args:
        path: The GGUF file.
        step: Called after each layer.

    Returns:
        The model; q_proj and k_proj rows are in Hugging Face order.
    """
    reader = GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    num_heads = metadata["llama.attention.head_count"]
    num_kv_heads = metadata["llama.attention.head_count_kv"]
    tensors: dict[str, NDArray[np.float32]] = {}
    layer_done = 0
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        weight = np.require(weight, requirements="W")  # torch wants no view of the mapped file
        name = tensor.name.removesuffix(".weight")
        if name in MODEL_NAMES:
            tensors[f"{MODEL_NAMES[name]}.weight"] = weight
            continue
        _, layer, kind = name.split(".")
        if kind in ("attn_q", "attn_k"):
            weight = _half_split_rows(weight, num_heads if kind == "attn_q" else num_kv_heads)
        tensors[f"model.layers.{layer}.{LAYER_NAMES[kind]}.weight"] = weight
        if int(layer) > layer_done:
            layer_done = int(layer)
            step()
    config = {
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": metadata["llama.embedding_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": metadata["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": 1e-5,  # the file holds the float32 nearest to it
        "rope_theta": metadata["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "attention_bias": False,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }
    return DenseModel(config, tensors, metadata)


def _half_split_rows(weight: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Undo GGUF llama's rows for interleaved RoPE: (head, pair, half) -> (head, half, pair)."""
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))
