# SPDX-License-Identifier: Apache-2.0
"""Writes models of real shape with random weights, as GGUF or safetensors: to measure speed with,
not quality.

Blocks are random bits with scales that make products unit-sized: nothing is quantised, so that
writing is bound by the disk. The vocabulary is real (SmolLM2's, or bytes), padded to the model's.

    tools/synthetic_model.py --preset qwen3-30b-a3b --layers 6 --type q4_0 --out a.gguf
    tools/synthetic_model.py --preset qwen3-30b-a3b --layers 2 --type bf16 --out directory
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from safetensors.torch import save_file
from synthetic_shapes import (
    FLOATS,
    GGUF_ARCHITECTURES,
    MIXES,
    PRESETS,
    Shape,
    gguf_name,
    gguf_type,
    tensors_of,
)

from kt_demo_model.progress import BuildProgress
from kt_demo_model.shards import write_shards
from kt_demo_model.source import source_gguf
from kt_runtime.checkpoint.gguf import Gguf
from kt_runtime.checkpoint.model_dir import ModelConfig
from kt_runtime.text.gguf_vocabulary import build_tokenizer, metadata_of

MAX_SHARD_BYTES = 1 << 30  # what is in memory at once while safetensors are written
POOL_BYTES = 1 << 25  # of random bits per type: repeats are out of every cache
REPORT_EVERY_S = 2.0
UNUSED = 5  # tokenizer.ggml.token_type of padding


DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


# Type → the offsets of its float16 scales with what they are for weights of unit deviation: the
# integers are uniform, so their deviation is known, and minima are put in the middle of them.
_SCALES: Mapping[Type, tuple[tuple[int, float], ...]] = {
    Type.Q4_0: ((0, 1 / 4.61),),
    Type.Q4_1: ((0, 1 / 4.61), (2, -7.5 / 4.61)),
    Type.Q8_0: ((0, 1 / 73.9),),
    Type.Q4_K: ((0, 1 / (32 * 4.61)), (2, 7.5 / (32 * 4.61))),
    Type.Q5_K: ((0, 1 / (32 * 9.23)), (2, 15.5 / (32 * 9.23))),
    Type.Q6_K: ((208, 1 / (64 * 18.5)),),
}


@cache
def pool(kind: Type, columns: int) -> NDArray[np.uint8]:
    """Random blocks, (count, bytes of one), for rows of this length: products of unit-sized inputs
    are unit-sized. Scales of quantised types vary by a quarter."""
    nbytes = gguf.GGML_QUANT_SIZES[kind][1]
    count = POOL_BYTES // nbytes
    rng = np.random.Generator(np.random.SFC64([kind, columns]))
    deviation = columns**-0.5
    if kind not in _SCALES:
        values = torch.from_numpy(rng.random((count, 1), np.float32)).sub_(0.5)
        values.mul_(2 * 3**0.5 * deviation)
        return values.to(DTYPES[kind.name.lower()]).view(torch.uint8).numpy()
    blocks = rng.integers(0, 256, (count, nbytes), dtype=np.uint8)
    vary = rng.uniform(0.75 * deviation, 1.25 * deviation, count)
    for at, scale in _SCALES[kind]:
        blocks[:, at : at + 2].view(np.float16)[:, 0] = vary * scale
    if kind in (Type.Q4_K, Type.Q5_K):
        blocks[:, 4:12] = 160  # every 6-bit scale and minimum of a sub-block is 32
        blocks[:, 12:16] = 0
    elif kind == Type.Q6_K:
        blocks[:, 192:208] = 64
    return blocks


def random_bytes(shape: tuple[int, ...], kind: Type, rng: np.random.Generator) -> Any:
    """A tensor's bytes, uint8: stretches of the pool from random places, at the speed of
    copying."""
    source = pool(kind, shape[-1])
    out = np.empty((prod(shape) // gguf.GGML_QUANT_SIZES[kind][0], source.shape[1]), np.uint8)
    at = 0
    while at < len(out):
        begin = int(rng.integers(len(source) // 2))
        taken = min(len(source) - begin, len(out) - at)
        out[at : at + taken] = source[begin : begin + taken]
        at += taken
    return out.reshape(-1)


def tensor_bytes(
    shape: tuple[int, ...], role: str, kind: Type, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The bytes of one tensor in this type; norms are ones."""
    if role not in ("norm", "zeros"):
        return np.asarray(random_bytes(shape, kind, rng))
    constant = torch.full(shape, float(role == "norm"), dtype=DTYPES[kind.name.lower()])
    return np.asarray(constant.view(torch.uint8).numpy())


def vocabulary(kind: str, size: int) -> dict[str, Any]:
    """Metadata of a byte-level tokenizer with `size` tokens, as GGUF files have them.

    Args:
        kind: "smollm2", out of the demo model's source (a download of 93 MB where there is none
            yet), or "bytes", a token per byte.
        size: what the model has; tokens beyond the vocabulary's are padding.
    """
    if kind == "smollm2":
        source = metadata_of(Gguf(source_gguf(BuildProgress(True))))
        keys = ("model", "pre", "tokens", "token_type", "merges")
        data = {f"tokenizer.ggml.{key}": source.get(f"tokenizer.ggml.{key}") for key in keys}
        data["tokenizer.chat_template"] = source.text("tokenizer.chat_template")
    else:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        characters = [chr(b) for b in printable] + [chr(0x100 + i) for i in range(68)]
        tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *characters, "th"]
        data = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
            "tokenizer.ggml.merges": ["t h"],
            "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
            "{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
        }
    padding = range(len(data["tokenizer.ggml.tokens"]), size)
    if len(data["tokenizer.ggml.tokens"]) > size:
        raise SystemExit(f"--vocab must be at least {padding.start} for {kind}; got {size}")
    data["tokenizer.ggml.tokens"] = [
        *data["tokenizer.ggml.tokens"],
        *(f"[PAD{i}]" for i in padding),
    ]
    data["tokenizer.ggml.token_type"] = array(
        "i", [*data["tokenizer.ggml.token_type"], *[5] * len(padding)]
    )
    ids = {"bos": 1, "eos": 2, "unknown": 0, "padding": 2}
    data |= {f"tokenizer.ggml.{role}_token_id": i for role, i in ids.items()}
    return data


def write_gguf(
    path: Path, shape: Shape, mix: str, tokens: Mapping[str, Any], seed: int, report: Progress
) -> None:
    """One file, one tensor in memory at a time; it appears when it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    writer = gguf.GGUFWriter(partial, GGUF_ARCHITECTURES[shape.arch])
    writer.add_name(f"synthetic {shape.arch}")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.vocab)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
        writer.add_expert_feed_forward_length(shape.moe_intermediate)
    for key, value in tokens.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    writer.add_add_bos_token(False)
    planned = []
    for tensor in tensors_of(shape):
        name = gguf_name(tensor.name, shape)
        full = (tensor.experts, *tensor.shape) if tensor.experts else tensor.shape
        kind = gguf_type(tensor, name, mix, shape)
        elements, nbytes = gguf.GGML_QUANT_SIZES[kind]
        size = prod(full) // elements * nbytes
        writer.add_tensor_info(name, full, np.dtype(np.float32), size, raw_dtype=kind)
        planned.append((tensor, full, kind, size))
    report.start(sum(size for *_, size in planned), path)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for i, (tensor, full, kind, size) in enumerate(planned):
        rng = np.random.Generator(np.random.SFC64([seed, i]))
        writer.write_tensor_data(tensor_bytes(full, tensor.kind, kind, rng))
        report.add(size)
    writer.close()
    partial.rename(path)


def write_safetensors(
    path: Path, shape: Shape, dtype: str, tokens: Mapping[str, Any], seed: int, report: Progress
) -> None:
    """A directory as transformers writes it."""
    itemsize = DTYPES[dtype].itemsize
    report.start(sum(max(1, t.experts) * prod(t.shape) * itemsize for t in tensors_of(shape)), path)
    path.mkdir(parents=True)

    def made() -> Iterator[tuple[str, torch.Tensor]]:
        for i, tensor in enumerate(tensors_of(shape)):
            rng = np.random.Generator(np.random.SFC64([seed, i]))
            for expert in range(max(1, tensor.experts)):
                data = tensor_bytes(tensor.shape, tensor.kind, Type[dtype.upper()], rng)
                report.add(data.nbytes)
                values = torch.from_numpy(data).view(DTYPES[dtype]).view(tensor.shape)
                yield tensor.name.format(expert=expert), values

    write_shards(path, made(), save_file, MAX_SHARD_BYTES)
    config = {
        "model_type": shape.arch,
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-6,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if shape.experts:
        key = {"mixtral": "num_local_experts", "glm4_moe": "n_routed_experts"}
        config |= {
            key.get(shape.arch, "num_experts"): shape.experts,
            "num_experts_per_tok": shape.experts_used,
            "moe_intermediate_size": shape.moe_intermediate,
            "norm_topk_prob": True,
        }
    (path / "config.json").write_text(json.dumps(config, indent=2))
    metadata = ModelConfig(tokens, path)
    build_tokenizer(metadata).save(str(path / "tokenizer.json"))
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    named["chat_template"] = metadata.text("tokenizer.chat_template")
    (path / "tokenizer_config.json").write_text(json.dumps(named, indent=2))


class Progress:
    """Bytes written of all, with the rate, on stderr; refuses what does not fit the disk."""

    def start(self, total: int, path: Path) -> None:
        """Before the first byte."""
        free = shutil.disk_usage(path.absolute().parent).free
        if total > free - (1 << 30):
            raise SystemExit(
                f"{path} needs {total / 1e9:.1f} GB and 1 GB to spare; got {free / 1e9:.1f} GB free"
            )
        self._total, self._done = total, 0
        self._started = self._reported = time.monotonic()

    def add(self, nbytes: int) -> None:
        """After each tensor."""
        self._done += nbytes
        now = time.monotonic()
        if now - self._reported >= REPORT_EVERY_S or self._done == self._total:
            self._reported = now
            rate = self._done / max(now - self._started, 1e-9)
            print(
                f"{self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB, {rate / 1e6:.0f} MB/s",
                file=sys.stderr,
                flush=True,
            )


def main(arguments: list[str] | None = None) -> int:
    """Write the model that the command line describes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="qwen3-30b-a3b")
    for field in fields(Shape):  # every number of the preset can be changed
        kind = {"str": str, "int": int, "float": float}.get(str(field.type), int)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind)
    parser.add_argument("--type", choices=MIXES, default="q4_0")
    parser.add_argument("--vocabulary", choices=("smollm2", "bytes"), default="smollm2")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="FILE.gguf, or a new directory")
    given = parser.parse_args(arguments)
    changes = {name: getattr(given, name) for name in asdict(PRESETS[given.preset])}
    shape = replace(
        PRESETS[given.preset], **{name: v for name, v in changes.items() if v is not None}
    )
    if given.out.exists():
        parser.error(f"{given.out} exists")
    as_gguf = given.out.suffix == ".gguf"
    if as_gguf and shape.arch not in GGUF_ARCHITECTURES:
        parser.error(f"{shape.arch} has no GGUF architecture here; give a directory")
    if not as_gguf and given.type not in FLOATS:
        parser.error(f"--type of safetensors must be one of {', '.join(FLOATS)}; got {given.type}")
    tokens = vocabulary(given.vocabulary, shape.vocab)
    write = write_gguf if as_gguf else write_safetensors
    write(given.out, shape, given.type, tokens, given.seed, Progress())
    return 0


if __name__ == "__main__":
    sys.exit(main())
