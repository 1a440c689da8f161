# SPDX-License-Identifier: Apache-2.0
"""Tiny GGUF files, written by the library `gguf` from tiny safetensors checkpoints. Not a test; no
KT code.

The same weights, quantised and dequantised by that library, go into a safetensors checkpoint: the
judge of what our reader makes of the file.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from .tiny_models import tiny_checkpoint

# Hugging Face name in a layer → GGUF's.
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.w3": "ffn_up_exps",
    "block_sparse_moe.experts.w2": "ffn_down_exps",
}
MODEL_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# Where a type's blocks hold float16 scales; the library cannot write these types.
RANDOM_TYPES = {Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,)}
ARCHITECTURES = {"llama": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe"}

TypeOf = Callable[[str], Type]


def write_tiny(
    name: str,
    directory: Path,
    type_of: TypeOf,
    split: int = 0,
    extra: Mapping[str, np.ndarray] | None = None,
    vocabulary: Tokenizer | None = None,
    **metadata: Any,
) -> tuple[Path, Path]:
    """TINY[name] as a GGUF file and as the safetensors directory that it must equal.

    Args:
        name: of tiny_models.TINY.
        directory: gets model.gguf (or its shards) and the directory "judge".
        type_of: the type of a matrix by its GGUF name; vectors and routers are F32.
        split: most tensors per file; 0: one file.
        vocabulary: a byte-level one.
        extra: F32 tensors besides those of the model.
        **metadata: more keys, or other values; dots are written "__".
    """
    source = tiny_checkpoint(name)[1]
    config = json.loads((source / "config.json").read_text())
    arch = ARCHITECTURES[config["model_type"]]
    tensors, judged = {}, {}
    for hf_name, values in _stacked(load_file(source / "model.safetensors")).items():
        gguf_name = _gguf_name(hf_name)
        kind = Type.F32
        if values.ndim > 1 and "ffn_gate_inp" not in gguf_name:
            kind = type_of(gguf_name)
        blocks = to_blocks(values, kind)
        judged |= _unstacked(hf_name, dequantize(blocks, kind).astype(np.float32))
        if arch == "llama" and re.search(r"attn_[qk]\.", gguf_name):
            heads = "num_attention_heads" if "attn_q" in gguf_name else "num_key_value_heads"
            blocks = _interleaved(blocks, config[heads])
        tensors[gguf_name] = (blocks, kind)
    judge = directory / "judge"
    judge.mkdir(parents=True)
    shutil.copy(source / "config.json", judge)
    save_file(judged, judge / "model.safetensors", metadata={"format": "pt"})
    path = directory / "model.gguf"
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    add_settings(writer, arch, config)
    if vocabulary is not None:
        add_vocabulary(writer, vocabulary, "gpt-2")
    for key, value in metadata.items():
        add_value(writer, key.replace("__", "."), value)
    tensors |= {key: (values, Type.F32) for key, values in (extra or {}).items()}
    for gguf_name, (blocks, kind) in tensors.items():
        writer.add_tensor(gguf_name, blocks, raw_dtype=kind)
    finish(writer)
    return (path if path.exists() else min(directory.glob("model-*.gguf"))), judge


def add_settings(writer: gguf.GGUFWriter, arch: str, config: Mapping[str, Any]) -> None:
    """What config.json says, under GGUF's keys."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    experts = config.get("num_local_experts") or config.get("num_experts")
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer, pre: str) -> None:
    """A byte-level tokenizer with its control tokens, as converters write it."""
    state = json.loads(tokenizer.to_str())
    special = {token["id"]: token["special"] for token in state["added_tokens"]}
    size = tokenizer.get_vocab_size()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokenizer.id_to_token(i) for i in range(size)])
    writer.add_token_types([{True: 3, False: 4, None: 1}[special.get(i)] for i in range(size)])
    merges = state["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A key of the type that the value has in Python."""
    for shard in writer.kv_data:
        shard.pop(key, None)  # the last value counts
    add = {
        str: writer.add_string,
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        list: writer.add_array,
    }
    add[type(value)](key, value)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def to_blocks(values: np.ndarray, kind: Type, seed: int = 1) -> np.ndarray:
    """`values` in this type; random blocks of their size where the library cannot write the
    type."""
    if kind not in RANDOM_TYPES:
        return quantize(values, kind)
    elements, nbytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (values.size // elements, nbytes), dtype=np.uint8)
    # Products of 6-bit scales and 4- to 6-bit values, brought to about the size of the weights.
    scale = values.shape[-1] ** -0.5 / (1000 if kind == Type.Q6_K else 200)
    for at, factor in zip(RANDOM_TYPES[kind], (1, 8), strict=False):
        halves = (scale * factor * rng.uniform(0.5, 1, (len(blocks), 1))).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8)
    return blocks.reshape(*values.shape[:-1], -1)


def _gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    if layer is None:
        return f"{MODEL_NAMES[stem]}.{kind}"
    return f"blk.{layer[1]}.{LAYER_NAMES[layer[2]]}.{kind}"


def _stacked(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Experts' matrices under one name without the index, along a new first axis."""
    out: dict[str, Any] = {}
    by_number = sorted(tensors, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    for name in by_number:
        common = re.sub(r"experts\.\d+\.", "experts.", name)
        out.setdefault(common, []).append(tensors[name])
    return {k: np.stack(v) if ".experts." in k else v[0] for k, v in out.items()}


def _unstacked(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    if ".experts." not in name:
        return {name: values}
    return {
        name.replace("experts.", f"experts.{e}."): np.ascontiguousarray(matrix)
        for e, matrix in enumerate(values)
    }


def _interleaved(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows (head, half, pair) in the order (head, pair, half), as llama.cpp rotates."""
    shape = rows.shape
    halves = rows.reshape(num_heads, 2, shape[0] // num_heads // 2, *shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(shape)
