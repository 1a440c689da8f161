# SPDX-License-Identifier: Apache-2.0
"""Writing tensors as Hugging Face safetensors shards with their index. Reads nothing."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kt_demo_model.tokenizer import write_json


def write_shards(
    directory: Path,
    tensors: Iterable[tuple[str, Any]],
    save_file: Callable[..., None],
    max_shard_bytes: int,
) -> None:
    """Write `model-0000i-of-0000n.safetensors` files and `model.safetensors.index.json`.

    Args:
        directory: Where to write.
        tensors: (name, numpy array or torch tensor), consumed lazily: one shard in memory.
        save_file: safetensors' writer for that kind of tensor.
        max_shard_bytes: A shard is closed before it would grow past this.
    """
    shards: list[list[str]] = []
    pending: dict[str, Any] = {}
    pending_bytes = total_bytes = 0

    def close_shard() -> None:
        nonlocal pending_bytes
        # "format" tells transformers which framework's layout this is; only "pt" is accepted.
        save_file(pending, directory / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()
        pending_bytes = 0

    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > max_shard_bytes:
            close_shard()
        pending[name] = tensor
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    close_shard()

    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file_name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"shard-{number}").rename(directory / file_name)
        weight_map |= dict.fromkeys(names, file_name)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    write_json(directory / "model.safetensors.index.json", index)
