# SPDX-License-Identifier: Apache-2.0
"""A GGUF model: its config and tensors under Hugging Face names. Model files need not know where
they come from. Imports no torch but for bfloat16, which numpy does not have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kt_runtime.checkpoint.formats import FLOATS
from kt_runtime.checkpoint.gguf import Gguf, TensorInfo
from kt_runtime.checkpoint.gguf_architectures import MODEL_NAMES, Mapped, map_architecture
from kt_runtime.checkpoint.model_dir import ModelConfig
from kt_runtime.protocols import QuantTensor
from kt_runtime.text.gguf_vocabulary import end_token_ids

if TYPE_CHECKING:
    from kt_runtime.protocols import StoredArray

# bf16 is given to torch as bits.
DTYPES = {"float32": np.float32, "f16": np.float16, "bf16": np.int16}
# Divisors of the rotary frequencies, one per pair: how the scaling of Llama 3 is stored.
ROPE_FREQS = "rope_freqs.weight"

_LAYER_TENSOR = re.compile(r"blk\.(?P<layer>\d+)\.(?P<name>\w+)\.(?P<kind>weight|bias)")


@dataclass(frozen=True, slots=True)
class _Part:
    """What one name stands for: a tensor, or one matrix of a tensor with three axes."""

    info: TensorInfo
    expert: int | None = None
    interleaved_heads: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape if self.expert is None else self.info.shape[1:]

    @property
    def nbytes(self) -> int:
        return self.info.nbytes // (1 if self.expert is None else self.info.shape[0])


class GgufSource:
    """protocols.TensorSource over a GGUF model. Floats and blocks are views of the mapped
    files, except queries and keys whose rows stand in another order: those are copies.
    Thread-safe."""

    def __init__(self, gguf: Gguf, mapped: Mapped) -> None:
        """Raises ValueError `[gguf] …` for tensors that cannot be what their name says."""
        self._gguf = gguf
        self._parts: dict[str, _Part] = {}
        for name, info in gguf.tensors.items():
            if name != ROPE_FREQS:
                self._parts |= _parts(name, info, mapped)
        self._bytes = {
            info.shard: np.frombuffer(gguf.data(info.shard), np.uint8)
            for info in gguf.tensors.values()
        }

    def names(self) -> Sequence[str]:
        """All tensors; those without a Hugging Face name under their own."""
        return list(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Read from the header."""
        return self._part(name).shape

    def format(self, name: str) -> str:
        """Read from the header."""
        return self._part(name).info.type.format

    def nbytes(self, name: str) -> int:
        """Read from the header."""
        return self._part(name).nbytes

    def get(self, name: str) -> StoredArray | QuantTensor:
        """Floats as an array, anything else as its blocks."""
        part = self._part(name)
        info = part.info
        begin = info.begin + (part.expert or 0) * part.nbytes
        data = self._bytes[info.shard][begin : begin + part.nbytes]
        if info.type.format in FLOATS:
            return _floats(_rows(data.view(DTYPES[info.type.format]).reshape(part.shape), part))
        rows, columns = part.shape
        return QuantTensor(info.type.format, _rows(data.reshape(rows, -1), part), (rows, columns))

    def get_all(self, names: Sequence[str]) -> StoredArray | None:
        """All matrices of one tensor with three axes; none of bfloat16, which would be copied."""
        parts = [self._part(name) for name in names]
        info = parts[0].info
        whole = parts == [_Part(info, expert) for expert in range(info.shape[0])]
        if not whole or info.type.format == "bf16":
            return None
        data = self._bytes[info.shard][info.begin : info.begin + info.nbytes]
        if info.type.format in FLOATS:
            return data.view(DTYPES[info.type.format]).reshape(info.shape)
        return data.reshape(*info.shape[:2], -1)

    def _part(self, name: str) -> _Part:
        if name not in self._parts:
            raise ValueError(
                f"[checkpoint] tensor {name} must be in {self._gguf.path}; "
                f"got {len(self._parts)} tensors without it"
            )
        return self._parts[name]


@dataclass(frozen=True, slots=True)
class GgufModel:
    """An opened GGUF model.

    Attributes:
        config: its settings under the keys of config.json.
        model_type: e.g. "mixtral".
        eos_token_ids: ids that end a sequence.
        source: its weights.
    """

    config: ModelConfig
    model_type: str
    eos_token_ids: tuple[int, ...]
    source: GgufSource

    @classmethod
    def open(cls, gguf: Gguf) -> GgufModel:
        """Reads what the opened files say of the model.

        Raises:
            ValueError: `[gguf] …` or `[checkpoint] …` naming the file, key or tensor.
        """
        metadata = ModelConfig(gguf.metadata, gguf.path)
        shapes = {name: info.shape for name, info in gguf.tensors.items()}
        mapped = map_architecture(metadata, shapes)
        source = GgufSource(gguf, mapped)
        if ROPE_FREQS in gguf.tensors:
            mapped.config["rope_parameters"] |= _rope_divisors(gguf, mapped)
        config = ModelConfig(mapped.config, gguf.path)
        return cls(config, config.text("model_type"), end_token_ids(metadata), source)


def _parts(name: str, info: TensorInfo, mapped: Mapped) -> Mapping[str, _Part]:
    """Hugging Face names → what of this tensor they stand for."""
    stem, _, kind = name.rpartition(".")
    if stem in MODEL_NAMES and kind == "weight":
        return {f"{MODEL_NAMES[stem]}.weight": _checked(_Part(info))}
    match = _LAYER_TENSOR.fullmatch(name)
    if match is None or match["name"] not in mapped.layer_names:
        return {name: _Part(info)}
    target = f"model.layers.{match['layer']}.{mapped.layer_names[match['name']]}.{match['kind']}"
    if "{expert}" not in target:
        return {target: _checked(_Part(info, None, mapped.interleaved.get(match["name"])))}
    if len(info.shape) != 3:
        raise ValueError(f"[gguf] tensor {name} must have three axes; got {info.shape}")
    return {target.format(expert=e): _Part(info, expert=e) for e in range(info.shape[0])}


def _checked(part: _Part) -> _Part:
    info = part.info
    if len(info.shape) > 2 or (len(info.shape) == 1 and info.type.format not in FLOATS):
        raise ValueError(
            f"[gguf] tensor {info.name} must be a matrix or a vector of floats; "
            f"got {info.shape} of {info.type.name}"
        )
    if part.interleaved_heads and info.shape[0] % (2 * part.interleaved_heads):
        raise ValueError(
            f"[gguf] rows of {info.name} must be an even number for each of "
            f"{part.interleaved_heads} heads; got {info.shape[0]}"
        )
    return part


def _rows(stored: NDArray[Any], part: _Part) -> NDArray[Any]:
    """Rows (head, pair, half) in the order (head, half, pair); others as they are. Whole rows move,
    so blocks stay blocks."""
    if part.interleaved_heads is None:
        return stored
    pairs = stored.reshape(part.interleaved_heads, -1, 2, *stored.shape[1:])
    return pairs.swapaxes(1, 2).reshape(stored.shape)


def _floats(stored: NDArray[Any]) -> StoredArray:
    if stored.dtype != np.int16:
        return stored
    import torch

    return torch.from_numpy(stored.copy()).view(torch.bfloat16)  # torch has no read-only tensors


def _rope_divisors(gguf: Gguf, mapped: Mapped) -> dict[str, object]:
    info = gguf.tensors[ROPE_FREQS]
    expected = (mapped.config["head_dim"] // 2,)
    scaling = mapped.config["rope_parameters"]["rope_type"]
    if info.type.format != "float32" or info.shape != expected or scaling != "default":
        raise ValueError(
            f"[gguf] {ROPE_FREQS} must be {expected} of F32, without another rope scaling; "
            f"got {info.shape} of {info.type.name} with scaling {scaling}"
        )
    values = gguf.data(info.shard)[info.begin : info.begin + info.nbytes].cast("f").tolist()
    return {"rope_type": "divided", "divisors": values}
