# SPDX-License-Identifier: Apache-2.0
"""Opens the prefix store for one model: the only place that imports kt_kvcache."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from kt_runtime.checkpoint.fingerprint import Fingerprint
from kt_runtime.config import EngineConfig
from kt_runtime.protocols import KVLayer, PrefixSpace

if TYPE_CHECKING:
    from kt_kvcache import Identity


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


@dataclass(frozen=True, slots=True)
class KVOrigin:
    """What KV values depend on beside tokens and the engine's settings.

    Attributes:
        model: its files.
        weight_formats: what each kind of matrix was packed to.
        computed_by: the code and instruction set that compute: others may round in another way.
    """

    model: Fingerprint
    weight_formats: Mapping[str, str]
    computed_by: str


def open_store(config: EngineConfig, kv: Sequence[KVLayer], origin: KVOrigin) -> OpenedStore:
    """A store in memory whose page ids are rows of the KV tensors."""
    from kt_kvcache import Arena, Geometry, Group, KVStore, OutOfPages, StoreConfig

    num_pages = len(kv[0].k)
    identity = _identity(config, origin)
    arena = Arena([_bytes(layer.k) for layer in kv] + [_bytes(layer.v) for layer in kv])
    geometry = Geometry(
        page_tokens=config.page_size,
        groups=(
            Group("k", len(kv), arena.strides[0]),
            Group("v", len(kv), arena.strides[-1]),
        ),
        layout="token, head, dim",
    )
    store = KVStore.open(None, config=StoreConfig(num_pages, config.page_size), arena=arena)

    def space_of(tenant: str | None) -> PrefixSpace:
        return store.space(identity, geometry, tenant)

    def page_counts() -> PageCounts:
        stats = store.stats()
        used = stats.pinned_pages + stats.reserved_pages
        return PageCounts(stats.num_pages, stats.free_pages, stats.cached_pages, used)

    if config.page_order_seed is not None:
        _shuffle_free_pages(space_of(None), num_pages, config.page_order_seed)
    return OpenedStore(space_of, OutOfPages, page_counts)


def _identity(config: EngineConfig, origin: KVOrigin) -> Identity:
    """All that changes KV values. What changes only their layout is the geometry's."""
    from kt_kvcache import Identity

    model = origin.model
    formats = ", ".join(f"{kind} {name}" for kind, name in sorted(origin.weight_formats.items()))
    return Identity(
        weights=f"{model.weights}/{model.config}",
        kv_format=config.resolved_kv_dtype,
        tokenizer=model.tokenizer,
        codec=f"{config.weight_format}/{config.group_size}/{formats}",
        attention=f"{config.backend}/{origin.computed_by}",
    )


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The same memory, (num_pages, bytes per page): numpy knows no bfloat16."""
    pages: NDArray[np.uint8] = tensor.view(len(tensor), -1).view(torch.uint8).numpy()
    return pages


def _shuffle_free_pages(space: PrefixSpace, num_pages: int, seed: int) -> None:
    """Give all pages back in random order: the store hands out what was freed last."""
    chain = space.chain(())
    pages = [space.reserve(chain, 0, 1) for _ in range(num_pages)]
    random.Random(seed).shuffle(pages)
    for page in pages:
        page.release()
