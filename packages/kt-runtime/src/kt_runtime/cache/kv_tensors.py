# SPDX-License-Identifier: Apache-2.0
"""The KV tensors behind page ids: how many pages fit, and their memory. Knows no sequences."""

from __future__ import annotations

import mmap
from math import prod

import torch

from kt_runtime.config import EngineConfig
from kt_runtime.protocols import KVLayer, ModelShape

_TORCH_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def page_bytes(shape: ModelShape, config: EngineConfig) -> int:
    """Bytes of one page: k and v of all layers."""
    per_token = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    return per_token * config.kv_page_size * _TORCH_DTYPES[config.resolved_kv_dtype].itemsize


def num_pages(shape: ModelShape, config: EngineConfig) -> int:
    """Pages of the pool: as configured, or as many as kv_cpu_memory_gb (10^9 bytes) holds, at least
    one."""
    if config.num_pages is not None:
        return config.num_pages
    return max(1, int(config.kv_cpu_memory_gb * 1e9) // page_bytes(shape, config))


def allocate(shape: ModelShape, config: EngineConfig) -> list[KVLayer]:
    """Per layer k and v, (num_pages, page_size, num_kv_heads, head_dim), zeroed.

    The operating system hands out zeroed memory page by page on first touch, so an unused pool
    costs address space, not memory.
    """
    dims = (num_pages(shape, config), config.kv_page_size, shape.num_kv_heads, shape.head_dim)
    dtype = _TORCH_DTYPES[config.resolved_kv_dtype]
    return [KVLayer(_zeros(dims, dtype), _zeros(dims, dtype)) for _ in range(shape.num_layers)]


def _zeros(dims: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """torch.zeros writes its zeros, which takes half a second for each GB."""
    untouched = mmap.mmap(-1, prod(dims) * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(untouched, dtype=dtype).view(dims)
