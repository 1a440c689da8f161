# SPDX-License-Identifier: Apache-2.0
"""KtPacker: a checkpoint's weights in kt_kernel's layout. Computes nothing with them, imports no
torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from kt_kernel import Experts, Linear, MoE, ThreadPool
from kt_runtime.ops.pack_cache import PackCache
from kt_runtime.protocols import Projection, QuantTensor

if TYPE_CHECKING:
    from kt_runtime.protocols import StoredArray

PROJECTIONS: tuple[Projection, ...] = ("gate", "up", "down")


class KtPacker:
    """protocols.Packer for KtOps. Thread-safe: an object has no state but its settings.

    Args:
        pool: the threads that pack, and compute later.
        max_tokens: most rows of one call of experts packed here.
        group_size: weights per scale of int8 and int4: 32, 64 or 128.
        pack_cache: where packed experts are kept between starts, if anywhere.
    """

    def __init__(
        self,
        pool: ThreadPool,
        max_tokens: int,
        group_size: int = 32,
        pack_cache: PackCache | None = None,
    ) -> None:
        self.pool = pool
        self.max_tokens = max_tokens
        self.group_size = group_size
        self._pack_cache = pack_cache

    def pack_vector(self, weight: StoredArray) -> StoredArray:
        """A float32 copy."""
        if isinstance(weight, np.ndarray):
            return weight.astype(np.float32)
        return weight.float().clone().contiguous()

    def pack_embedding(self, weight: StoredArray | QuantTensor) -> StoredArray | QuantTensor:
        """The table itself, in its mapped file, say. A copy only of floats at an odd address."""
        if isinstance(weight, QuantTensor):
            return weight
        if isinstance(weight, np.ndarray):
            return weight if weight.flags.aligned else weight.copy()
        return weight if weight.data_ptr() % weight.element_size() == 0 else weight.clone()

    def pack_linear(
        self,
        weight: StoredArray | QuantTensor,
        weight_format: str,
        bias: StoredArray | None = None,
    ) -> Linear:
        """The matrix (out, in) in the kernels' layout."""
        return Linear.pack(
            kernel_array(weight),
            format=weight_format,
            group_size=self.group_size,
            bias=None if bias is None else self.pack_vector(bias),
            pool=self.pool,
        )

    def pack_experts(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        top_k: int,
        weight_formats: Mapping[Projection, str],
        load: Callable[[int, Projection], StoredArray | QuantTensor],
        load_all: Callable[[Projection], StoredArray | None] = lambda _: None,
        name: str = "",
    ) -> MoE:
        """All experts, as many at a time as there are threads. Kept ones are taken as they are."""
        sizes = (num_experts, hidden_size, intermediate_size, self.group_size)
        cache = self._pack_cache
        key = "" if cache is None else cache.key(name, sizes, weight_formats)
        experts = None if cache is None else cache.load(key, self.pool)
        if experts is None:
            experts = Experts.empty(
                num_experts,
                hidden_size,
                intermediate_size,
                gate=weight_formats["gate"],
                up=weight_formats["up"],
                down=weight_formats["down"],
                group_size=self.group_size,
            )
            for projection in PROJECTIONS:
                self._put(experts, projection, load, load_all)
            if cache is not None:
                cache.keep(key, experts, self.pool)
        return MoE(experts, top_k=top_k, max_tokens=self.max_tokens, pool=self.pool)

    def _put(
        self,
        experts: Experts,
        projection: Projection,
        load: Callable[[int, Projection], StoredArray | QuantTensor],
        load_all: Callable[[Projection], StoredArray | None],
    ) -> None:
        """One call where the file has them together: then no other thread's Python is waited for
        between two experts, while torch is imported, say."""
        together = load_all(projection)
        if together is not None:
            experts.put_all(projection, together, pool=self.pool)
            return

        def put(expert: int) -> None:
            experts.put(expert, projection, kernel_array(load(expert, projection)))

        with ThreadPoolExecutor(self.pool.num_threads) as packers:
            for _ in packers.map(put, range(experts.num_experts)):
                pass  # raises what a packer raised, and lets the others go


def kernel_array(weight: StoredArray | QuantTensor) -> Any:
    """What the kernels take: float values, or the blocks of the file."""
    return weight.blocks if isinstance(weight, QuantTensor) else weight
