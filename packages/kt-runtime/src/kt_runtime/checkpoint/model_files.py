# SPDX-License-Identifier: Apache-2.0
"""A model's files, opened once for all who read them: tokenizer, chat template, checkpoint. Imports
no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kt_runtime.checkpoint.gguf import MAX_HEADER_BYTES, Gguf, shard_paths
from kt_runtime.checkpoint.read_ahead import ReadAhead, Stored


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What `from_pretrained` takes instead of a path, so that a header is parsed once per load.

    Attributes:
        path: a Hugging Face directory or a GGUF file.
        gguf: the opened file; None for a directory.
        read_ahead: of the weights; whoever will need them soon starts it.
    """

    path: Path
    gguf: Gguf | None
    read_ahead: ReadAhead

    @classmethod
    def open(cls, path: str | Path | ModelFiles) -> ModelFiles:
        """Opens a GGUF file; a directory is looked at by those who read it. What is open stays.

        Raises:
            ValueError: `[gguf] …` naming file, key or tensor.
        """
        if isinstance(path, ModelFiles):
            return path
        path = Path(path)
        if not path.is_file():
            return cls(path, None, ReadAhead(lambda: _in_directory(path)))
        gguf = Gguf(path)
        return cls(path, gguf, ReadAhead(lambda: _in_gguf(gguf)))


def _in_gguf(gguf: Gguf) -> Iterator[Stored]:
    files = shard_paths(gguf.path)
    for info in gguf.tensors.values():
        yield Stored(info.name, files[info.shard], info.begin, info.nbytes)


def _in_directory(path: Path) -> Iterator[Stored]:
    """As the headers of the safetensors files have it. What is wrong with one is left to those who
    open it: reading ahead is never needed."""
    for file in sorted(path.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(min(length, MAX_HEADER_BYTES)))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = map(int, entry["data_offsets"])
                if 0 <= begin <= end:
                    yield Stored(name, file, 8 + length + begin, end - begin)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            continue
