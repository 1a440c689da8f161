# SPDX-License-Identifier: Apache-2.0
"""TensorSource over the safetensors files of a model directory, single or sharded. Memory-mapped,
keeps no tensor."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kt_runtime.checkpoint.model_dir import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Names in the file format's own spelling → torch.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# What kt_kernel calls those that are weights.
FORMATS = {torch.float32: "float32", torch.bfloat16: "bf16", torch.float16: "f16"}


class SafetensorsSource:
    """A checkpoint's tensors by name.

    Opening reads the headers of all files and compares them with the files' sizes, so that a
    truncated or incomplete checkpoint is refused before any weight is packed. Tensors are views of
    the mapped file: copy what must outlive it. Not thread-safe while opening; reading is.
    """

    def __init__(self, path: str | Path) -> None:
        """path: the model directory. Raises ValueError `[checkpoint] …` naming the file and
        tensor."""
        self._path = Path(path)
        self._files: dict[str, Any] = {}  # by file name
        self._where: dict[str, str] = {}  # tensor → file name
        if (self._path / INDEX).exists():
            self._open_shards()
        else:
            self._where = dict.fromkeys(self._open(SINGLE), SINGLE)

    def names(self) -> Sequence[str]:
        """All tensors, in no order that matters."""
        return list(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Read from the header."""
        return tuple(self._entry(name).get_shape())

    def format(self, name: str) -> str:
        """Read from the header; ValueError for a type that torch does not have."""
        dtype = self._dtype(name)
        return FORMATS.get(dtype, str(dtype).removeprefix("torch."))

    def nbytes(self, name: str) -> int:
        """Read from the header."""
        return prod(self.shape(name)) * self._dtype(name).itemsize

    def get(self, name: str) -> Tensor:
        """A view of the mapped file."""
        tensor: Tensor = self._file_of(name).get_tensor(name)
        return tensor

    def get_all(self, names: Sequence[str]) -> None:
        """Every matrix is a tensor of its own."""

    def _dtype(self, name: str) -> torch.dtype:
        stored = self._entry(name).get_dtype()
        if stored not in DTYPES:
            raise ValueError(
                f"[checkpoint] {name} in {self._where[name]} must have one of the dtypes "
                f"{', '.join(DTYPES)}; got {stored}"
            )
        return DTYPES[stored]

    def _entry(self, name: str) -> Any:
        return self._file_of(name).get_slice(name)

    def _file_of(self, name: str) -> Any:
        if name not in self._where:
            raise ValueError(
                f"[checkpoint] tensor {name} must be in {self._path}; "
                f"got {len(self._where)} tensors without it"
            )
        return self._files[self._where[name]]

    def _open_shards(self) -> None:
        weight_map = read_json(self._path / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(
                f"[checkpoint] {INDEX} must have a weight_map of tensors to files; "
                f"got {type(weight_map).__name__}"
            )
        held = {file: set(self._open(file)) for file in sorted(set(map(str, weight_map.values())))}
        for name, file in weight_map.items():
            if name not in held[str(file)]:
                raise ValueError(
                    f"[checkpoint] {file} must hold {name} as {INDEX} says; "
                    f"got a file without that tensor"
                )
        self._where = {name: str(file) for name, file in weight_map.items()}

    def _open(self, file: str) -> list[str]:
        path = self._path / file
        # An index may only name files beside it: a downloaded checkpoint must not read elsewhere.
        if Path(file).name != file or not path.is_file():
            raise ValueError(
                f"[checkpoint] {file} must be a file in the model directory; got {self._path}"
            )
        try:
            opened: Any = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"[checkpoint] {file} must be a complete safetensors file; got {error} "
                f"({path.stat().st_size} bytes)"
            ) from None
        self._files[file] = opened
        names: list[str] = opened.keys()
        return names
