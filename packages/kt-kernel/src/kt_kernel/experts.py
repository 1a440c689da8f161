# SPDX-License-Identifier: Apache-2.0
"""The packed weights of the experts of one MoE layer. Storage only; `kt_kernel.moe` computes."""

import os
from typing import Any, Literal

import numpy as np

from kt_kernel import _core, expert_file
from kt_kernel.arrays import typed
from kt_kernel.scalars import int32
from kt_kernel.source import source_of
from kt_kernel.thread_pool import ThreadPool

__all__ = ("Experts", "Projection")

Projection = Literal["gate", "up", "down"]


class Experts:
    """Packed gate, up and down projections of `num_experts` experts.

    Made by `Experts.empty` and filled with `put`, one projection of one expert at a time, so that
    loading a checkpoint needs the packed size plus one matrix per thread; or by `Experts.pack` from
    three whole arrays; or found packed by `Experts.load`.
    """

    def __init__(self, core: _core.Experts) -> None:
        self._core = core

    @classmethod
    def empty(
        cls,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        *,
        gate: str | None = "int4",
        up: str = "int4",
        down: str = "int4",
        group_size: int = 32,
    ) -> "Experts":
        """Allocate storage for all experts; every projection must be `put` before use.

        Args:
            num_experts: number of experts.
            hidden_size: width of the layer's input and output.
            intermediate_size: width between up and down.
            gate: weight format of the gate projection, a key of `formats.FORMATS`; None for an
                activation without a gate.
            up: weight format of the up projection.
            down: weight format of the down projection.
            group_size: weights along K that share a scale: 32, 64 or 128, or 0 for one scale per
                row. Formats with a group of their own, or none, ignore it.

        Raises:
            ValueError: a size below 1 or beyond any model, an unknown format or a group size it
                does not have.
            MemoryError: the experts do not fit in memory.
        """
        return cls(
            _core.Experts(
                int32("experts", "num_experts", num_experts),
                int32("experts", "hidden_size", hidden_size),
                int32("experts", "intermediate_size", intermediate_size),
                gate,
                up,
                down,
                int32("experts", "group_size", group_size),
            )
        )

    @classmethod
    def pack(
        cls,
        gate_proj: object,
        up_proj: object,
        down_proj: object,
        *,
        format: str = "int4",
        group_size: int = 32,
        pool: ThreadPool,
        dtype: str | None = None,
    ) -> "Experts":
        """Pack whole arrays: the convenient way where memory does not matter.

        Args:
            gate_proj: (num_experts, intermediate_size, hidden_size) float32, bf16 or f16.
            up_proj: as `gate_proj`.
            down_proj: (num_experts, hidden_size, intermediate_size).
            format: weight format of all three.
            group_size: weights along K that share a scale.
            pool: its size is the number of matrices packed at once.
            dtype: "bf16" if the arrays are bare uint16 bits.

        Raises:
            ValueError: wrong dtype, layout or shape.
        """
        gate = typed("experts.pack", "gate_proj", gate_proj, dtype)
        up = typed("experts.pack", "up_proj", up_proj, dtype)
        down = typed("experts.pack", "down_proj", down_proj, dtype)
        if gate[0].ndim != 3:
            raise ValueError(
                "[experts.pack] gate_proj must be (num_experts, intermediate_size, hidden_size); "
                f"got {tuple(gate[0].shape)}"
            )
        num_experts, intermediate_size, hidden_size = gate[0].shape
        _must_have_shape("up_proj", up[0], (num_experts, intermediate_size, hidden_size))
        _must_have_shape("down_proj", down[0], (num_experts, hidden_size, intermediate_size))
        experts = cls.empty(
            num_experts,
            hidden_size,
            intermediate_size,
            gate=format,
            up=format,
            down=format,
            group_size=group_size,
        )

        for projection, (array, name) in (("gate", gate), ("up", up), ("down", down)):
            rows = _rows("experts.pack", f"{projection}_proj", array)
            experts._core.put_all(projection, rows, name, pool._core)
        return experts

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        pool: ThreadPool | None = None,
        mmap: bool = True,
        verify: bool = True,
    ) -> "Experts":
        """Take the experts of a file that `save` wrote. Their weights are read-only.

        Args:
            path: the file.
            pool: its size is the number of threads that read and check; None: one.
            mmap: compute from the file's own pages, which all processes that load it share and the
                system may drop and read again. While they are in use the file must not be written
                to: what changes changes the weights, and reading what was cut off ends the process
                (SIGBUS). `save` over it is safe: it makes a new file. False copies the weights into
                memory of this process, in huge pages.
            verify: compare every checksum, which reads all of the file. False trusts the weights;
                the header is checked anyway.

        Raises:
            ValueError: not such a file, cut off, damaged, or of another version.
            OSError: the file cannot be opened or read.
            MemoryError: the copy does not fit in memory.
        """
        core_pool = None if pool is None else pool._core
        return cls(expert_file.load(path, core_pool, copy=not mmap, verify=verify))

    def save(self, path: str | os.PathLike[str], *, pool: ThreadPool | None = None) -> None:
        """Write all weights and biases to a file, packed as they are; `expert_file` describes it.

        The file appears, or replaces an older one, whole or not at all; meanwhile its bytes are in
        a file ".kt-*.tmp" beside it. Needs no second copy in memory. Not during a `put`.

        Args:
            path: the file; by convention "*.safetensors", for that is what it is.
            pool: its size is the number of threads that compute checksums; None: one.

        Raises:
            ValueError: the experts are not complete.
            OSError: the file cannot be written, for example for lack of space.
        """
        expert_file.save(self._core, path, 1 if pool is None else pool.num_threads)

    def put(
        self,
        expert: int,
        projection: Projection,
        weight: object,
        *,
        scales: object | None = None,
        zeros: object | None = None,
        dtype: str | None = None,
    ) -> None:
        """Pack one projection of one expert. Releases the GIL.

        Thread-safe for different (expert, projection) pairs; not while a MoE uses these experts.

        Floats are rounded to the format. Weights that are already quantised are taken as they are,
        as bytes (uint8, int8 or float8_e4m3fn):

        - GGUF types: (n, bytes of a row), the blocks of the file.
        - "int8", "int4", "int4_zp": (n, k), one value per byte (4-bit ones in [0, 15]); `scales`
          (n, groups) are rounded to bf16, `zeros` (n, groups) are "int4_zp"'s; "int4" is centred
          on 8.
        - "fp8": (n, k) e4m3; `scales` (n / 128, k / 128), rounded up.
        - "mxfp4": (n, k / 2), neighbours in one byte, the first one low; `scales` (n, k / 32) uint8
          exponents.

        Args:
            expert: index in [0, num_experts).
            projection: "gate", "up" or "down".
            weight: gate and up (intermediate_size, hidden_size), down (hidden_size,
                intermediate_size); float32, bf16 or f16, or bytes as above.
            scales: of quantised weights.
            zeros: of quantised weights.
            dtype: "bf16" if `weight` is bare uint16 bits.

        Raises:
            ValueError: index, projection, dtype, layout or shape is wrong, a quantised value is
                none of the format's, or the experts were loaded from a file.
        """
        expert = int32("experts.put", "expert", expert)
        source = source_of("experts.put", weight, scales, zeros, dtype)
        self._core.put(expert, projection, *source)

    def put_all(
        self, projection: Projection, weights: object, *, pool: ThreadPool, dtype: str | None = None
    ) -> None:
        """Pack one projection of all experts in one call, for arrays that hold them one after
        another. Releases the GIL once: other threads' Python does not slow it.

        Args:
            projection: "gate", "up" or "down".
            weights: (num_experts, n, k) float32, bf16 or f16; or (num_experts, n, bytes of a row)
                uint8, the blocks of a GGUF file. Formats with scales of their own need `put`.
            pool: packs as many experts at once as it has threads.
            dtype: "bf16" if `weights` are bare uint16 bits.

        Raises:
            ValueError: as `put`.
        """
        source = source_of("experts.put_all", weights, None, None, dtype)
        shape = tuple(source.weight.shape)
        if len(shape) != 3 or shape[0] != self.num_experts:
            raise ValueError(
                f"[experts.put_all] weights must be those of {self.num_experts} experts on three "
                f"axes; got {shape}"
            )
        rows = _rows("experts.put_all", projection, source.weight)
        self._core.put_all(projection, rows, source.dtype, pool._core)

    def put_bias(self, projection: Projection, bias: object) -> None:
        """Set the biases that are added to a projection's outputs. Not while a MoE uses them.

        Args:
            projection: "gate", "up" or "down".
            bias: (num_experts, outputs of the projection) float32.

        Raises:
            ValueError: wrong projection, dtype, layout or shape.
        """
        self._core.put_bias(projection, bias)

    @property
    def complete(self) -> bool:
        """Whether every projection of every expert was put."""
        return self._core.complete

    @property
    def nbytes(self) -> int:
        """Bytes of packed storage."""
        return self._core.nbytes

    @property
    def gated(self) -> bool:
        """Whether there is a gate projection."""
        return self._core.gated

    @property
    def num_experts(self) -> int:
        """Number of experts."""
        return self._core.num_experts

    @property
    def hidden_size(self) -> int:
        """Width of the layer's input and output."""
        return self._core.hidden_size

    @property
    def intermediate_size(self) -> int:
        """Width between up and down."""
        return self._core.intermediate_size


def _rows(op: str, name: str, array: Any) -> Any:
    """The rows of all experts, one after another; never a copy."""
    if isinstance(array, np.ndarray):
        is_contiguous = array.flags.c_contiguous
    else:
        is_contiguous = array.is_contiguous()
    if not is_contiguous:
        raise ValueError(
            f"[{op}] {name} must be C-contiguous; got {tuple(array.shape)} that is not"
        )
    return array.reshape(-1, array.shape[-1])


def _must_have_shape(name: str, array: Any, shape: tuple[int, ...]) -> None:
    if tuple(array.shape) != shape:
        raise ValueError(
            f"[experts.pack] {name} must be {shape} to fit gate_proj; got {tuple(array.shape)}"
        )
