# SPDX-License-Identifier: Apache-2.0
"""WeightReader: checkpoint names in, a Packer's weights out. Checks shapes; knows no architecture,
imports no torch but for weights that no kernel takes as they are."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kt_runtime.checkpoint.formats import FLOATS, Role, common, resolve
from kt_runtime.config import WeightFormat
from kt_runtime.protocols import Packer, Projection, QuantTensor, TensorSource

if TYPE_CHECKING:
    from kt_runtime.protocols import StoredArray

Progress = Callable[[int, int], None]


class WeightReader:
    """Reads each tensor once, straight into its packed form; holds none of them.

    Every reader says the shape that config.json promises; a tensor of another shape is a ValueError
    `[checkpoint] …`.
    """

    def __init__(
        self,
        source: TensorSource,
        packer: Packer,
        weight_format: WeightFormat,
        progress: Progress | None = None,
    ) -> None:
        """progress: called with (bytes read, bytes in the checkpoint) after every tensor, by one
        thread at a time."""
        self._source = source
        self._packer = packer
        self._weight_format = weight_format
        self._progress = progress
        self._bytes = {name: source.nbytes(name) for name in source.names()}
        self._total_bytes = sum(self._bytes.values())
        self._unread = set(self._bytes)
        self._formats: defaultdict[Role, set[str]] = defaultdict(set)
        self._bytes_read = 0
        self._reading = threading.Lock()  # experts are read by several threads

    def vector(self, name: str, size: int) -> Any:
        """One (size,) tensor."""
        return self._packer.pack_vector(self._floats(name, (size,)))

    def embedding(self, name: str, vocab_size: int, hidden_size: int) -> Any:
        """One (vocab_size, hidden_size) table."""
        self._format("embedding", self._source.format(name))
        return self._packer.pack_embedding(self._stored(name, (vocab_size, hidden_size)))

    def linear(
        self,
        name: str,
        out_features: int,
        in_features: int,
        *,
        bias: bool = False,
        role: Role = "linear",
    ) -> Any:
        """`{name}.weight` (out_features, in_features) and, with bias, `{name}.bias`."""
        packed = self._format(role, self._source.format(f"{name}.weight"))
        weight = self._read(f"{name}.weight", (out_features, in_features), packed)
        vector = self._floats(f"{name}.bias", (out_features,)) if bias else None
        return self._packer.pack_linear(weight, packed, vector)

    def experts(
        self,
        name: str,
        projections: Mapping[Projection, str],
        *,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        top_k: int,
    ) -> Any:
        """name: a pattern of {expert} and {projection}; projections: what the checkpoint calls
        gate, up and down."""

        def tensor_name(expert: int, projection: Projection) -> str:
            filled = name.format(expert=expert, projection=projections[projection])
            return f"{filled}.weight"

        def shape_of(projection: Projection) -> tuple[int, int]:
            if projection == "down":
                return hidden_size, intermediate_size
            return intermediate_size, hidden_size

        def load(expert: int, projection: Projection) -> StoredArray | QuantTensor:
            name = tensor_name(expert, projection)
            return self._read(name, shape_of(projection), formats[projection])

        def load_all(projection: Projection) -> StoredArray | None:
            names = [tensor_name(expert, projection) for expert in range(num_experts)]
            if not {self._source.format(n) for n in names} <= {*FLOATS, formats[projection]}:
                return None
            for each in names:
                self._check_shape(each, shape_of(projection))
            return self._source.get_all(names)

        def stored(projection: Projection) -> str:
            names = (tensor_name(expert, projection) for expert in range(num_experts))
            return common({self._source.format(name) for name in names})

        formats = {p: self._format("experts", stored(p)) for p in projections}
        experts = self._packer.pack_experts(
            num_experts, hidden_size, intermediate_size, top_k, formats, load, load_all, name
        )
        for expert in range(num_experts):  # also those that were found packed
            for projection in projections:
                self._mark_read(tensor_name(expert, projection))
        return experts

    @property
    def formats(self) -> dict[str, str]:
        """What each kind of matrix was packed to so far: {"experts": "int4", "linear": "int8", …}.

        Several formats of one kind (a checkpoint of mixed dtypes) are joined by "+".
        """
        return {role: "+".join(sorted(packed)) for role, packed in self._formats.items()}

    def finish(self, ignore: Callable[[str], bool]) -> None:
        """Refuses a checkpoint with tensors that the model did not read, unless `ignore` says they
        are no part of it: a tensor nobody reads is mathematics that is missing."""
        left = sorted(name for name in self._unread if not ignore(name))
        if left:
            raise ValueError(
                f"[checkpoint] every tensor must be known to the model; "
                f"got {len(left)} unknown ones: {_sample(left)}"
            )
        self._report(self._total_bytes)

    def _format(self, role: Role, stored: str) -> str:
        packed = resolve(self._weight_format, role, stored)
        self._formats[role].add(packed)
        return packed

    def _floats(self, name: str, shape: tuple[int, ...]) -> StoredArray:
        vector = self._stored(name, shape)
        return _values(vector) if isinstance(vector, QuantTensor) else vector

    def _read(self, name: str, shape: tuple[int, ...], packed: str) -> StoredArray | QuantTensor:
        """As it is stored if it is to be packed so, else floats."""
        weight = self._stored(name, shape)
        if isinstance(weight, QuantTensor) and weight.format != packed:
            return _values(weight)
        return weight

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        got = self._source.shape(name)
        if got != shape:
            raise ValueError(f"[checkpoint] {name} must have shape {shape}; got {got}")

    def _stored(self, name: str, shape: tuple[int, ...]) -> StoredArray | QuantTensor:
        self._check_shape(name, shape)
        tensor = self._source.get(name)
        self._mark_read(name)
        return tensor

    def _mark_read(self, name: str) -> None:
        with self._reading:
            if name in self._unread:
                self._unread.remove(name)
                self._report(self._bytes_read + self._bytes[name])

    def _report(self, bytes_read: int) -> None:
        self._bytes_read = bytes_read
        if self._progress is not None:
            self._progress(bytes_read, self._total_bytes)


def _values(weight: QuantTensor) -> StoredArray:
    from kt_runtime.checkpoint.gguf_blocks import dequantize

    return dequantize(weight)


def _sample(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
