# SPDX-License-Identifier: Apache-2.0
"""Opens the prefix store for one model: the only place that imports kt_kvcache."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kt_runtime.cache.fingerprint import fingerprint
from kt_runtime.config import EngineConfig
from kt_runtime.protocols import ModelShape, PrefixSpace


@dataclass(frozen=True, slots=True)
class PageCounts:
    """total = free (hold nothing) + cached (reusable, evictable) + used (held by requests)."""

    total: int
    free: int
    cached: int
    used: int


@dataclass(frozen=True, slots=True)
class OpenedStore:
    """What the page pool and the engine's statistics need of the store.

    Attributes:
        space_of: the namespace of a tenant (None: the common one).
        out_of_pages: what `reserve` raises when it cannot.
        page_counts: a snapshot; thread-safe, O(num_pages).
    """

    space_of: Callable[[str | None], PrefixSpace]
    out_of_pages: type[Exception]
    page_counts: Callable[[], PageCounts]


def open_store(
    config: EngineConfig, shape: ModelShape, num_pages: int, model_path: Path
) -> OpenedStore:
    """A store in memory whose page ids are rows of the KV tensors.

    Its identity holds all that changes KV values: the checkpoint's files, how weights are packed,
    the KV dtype and who computes. Anything else (page size, shapes) is its geometry.
    """
    from kt_kvcache import Geometry, Group, Identity, KVStore, OutOfPages, StoreConfig

    kv_dtype = config.resolved_kv_dtype
    identity = Identity(
        weights=fingerprint(model_path),
        kv_format=kv_dtype,
        codec=f"{config.weight_format}/{config.group_size}",
        attention=config.backend,
    )
    itemsize = {"float32": 4, "bf16": 2}[kv_dtype]
    layer_bytes = config.page_size * shape.num_kv_heads * shape.head_dim * itemsize
    geometry = Geometry(
        page_tokens=config.page_size,
        groups=(
            Group("k", shape.num_layers, layer_bytes),
            Group("v", shape.num_layers, layer_bytes),
        ),
        layout="token, head, dim",
    )
    store = KVStore.open(None, config=StoreConfig(num_pages, config.page_size))

    def space_of(tenant: str | None) -> PrefixSpace:
        return store.space(identity, geometry, tenant)

    def page_counts() -> PageCounts:
        stats = store.stats()
        used = stats.pinned_pages + stats.reserved_pages
        return PageCounts(stats.num_pages, stats.free_pages, stats.cached_pages, used)

    if config.page_order_seed is not None:
        _shuffle_free_pages(space_of(None), num_pages, config.page_order_seed)
    return OpenedStore(space_of, OutOfPages, page_counts)


def _shuffle_free_pages(space: PrefixSpace, num_pages: int, seed: int) -> None:
    """Give all pages back in random order: the store hands out what was freed last."""
    chain = space.chain(())
    pages = [space.reserve(chain, 0, 1) for _ in range(num_pages)]
    random.Random(seed).shuffle(pages)
    for page in pages:
        page.release()
