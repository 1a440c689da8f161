# SPDX-License-Identifier: Apache-2.0
"""Opens the prefix store for one model, in memory and on disk. Hands out no pages itself."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from kt_runtime.checkpoint.fingerprint import Fingerprint
from kt_runtime.config import EngineConfig
from kt_runtime.protocols import KVLayer, PrefixSpace

if TYPE_CHECKING:
    from kt_kvcache import Identity, Stats


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


class ModelStore:
    """The prefix store of one loaded model, whose page ids are rows of its KV tensors. With
    kv_disk_path, what it publishes is written there, too, and found there. Thread-safe.

    Attributes:
        out_of_pages: what a space's `reserve` raises when it cannot.

    Raises:
        ValueError: kv_disk_path is no safe place, or kv_disk_gb too small for a page.
        OSError: it cannot be read, or the system refuses kv_io="uring".
    """

    def __init__(self, config: EngineConfig, kv: Sequence[KVLayer], origin: KVOrigin) -> None:
        from kt_kvcache import Arena, Geometry, Group, KVStore, OutOfPages, StoreConfig

        self.out_of_pages: type[Exception] = OutOfPages
        self._identity = _identity(config, origin)
        arena = Arena([_bytes(layer.k) for layer in kv] + [_bytes(layer.v) for layer in kv])
        self._geometry = Geometry(
            page_tokens=config.kv_page_size,
            groups=(
                Group("k", len(kv), arena.strides[0]),
                Group("v", len(kv), arena.strides[-1]),
            ),
            layout="token, head, dim",
        )
        root = _root(config)
        sizes = StoreConfig(
            arena.num_pages,
            config.kv_page_size,
            disk_bytes=0 if root is None else int(config.kv_disk_gb * 1e9),
            tenant_share=config.kv_tenant_share,
            io=config.kv_io,
            write_policy=config.kv_write_policy,
            daily_write_bytes=_bytes_of(config.kv_daily_write_gb),
            read_bytes_per_s=_bytes_of(config.kv_read_gb_s),
            write_bytes_per_s=_bytes_of(config.kv_write_gb_s),
            max_age_s=config.kv_max_age_s,
        )
        self._store = KVStore.open(root, config=sizes, arena=arena)
        self._final_stats: Stats | None = None
        if config.page_order_seed is not None:
            _shuffle_free_pages(self.space_of(None), arena.num_pages, config.page_order_seed)

    def space_of(self, tenant: str | None) -> PrefixSpace:
        """The namespace of a tenant; None is the common one."""
        return self._store.space(self._identity, self._geometry, tenant)

    def stats(self) -> Stats:
        """A snapshot; the last one once it is closed. O(num_pages)."""
        return self._final_stats or self._store.stats()

    def close(self) -> None:
        """End it when all that was published is on disk, if it is kept there. Idempotent."""
        if self._final_stats is None:
            self._final_stats = self._store.stats()
            self._store.close()


def check_root(config: EngineConfig) -> None:
    """Raises what `ModelStore` would over kv_disk_path: before a long load, not after."""
    from kt_kvcache.disk.files import OsFiles

    root = _root(config)
    if root is not None:
        OsFiles(root).close_all()


def _root(config: EngineConfig) -> Path | None:
    return None if config.kv_disk_path is None else Path(config.kv_disk_path).expanduser()


def by_tier(stats: Stats) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """Of each tier: what it counts, and what it holds now."""
    counters, gauges = {}, {}
    for tier, snapshot in (("memory", stats), ("disk", stats.disk)):
        if snapshot is not None:
            counters[tier] = asdict(snapshot.counters)
            held = {field.name: getattr(snapshot, field.name) for field in fields(snapshot)}
            gauges[tier] = {n: float(v) for n, v in held.items() if isinstance(v, int | float)}
    return counters, gauges


def _identity(config: EngineConfig, origin: KVOrigin) -> Identity:
    """All that changes KV values. What changes only their layout is the geometry's."""
    from kt_kvcache import Identity

    model = origin.model
    # A store in memory holds one loaded model's pages and dies with it.
    weights = "loaded" if config.kv_disk_path is None else f"{model.weights}/{model.config}"
    formats = ", ".join(f"{kind} {name}" for kind, name in sorted(origin.weight_formats.items()))
    return Identity(
        weights=weights,
        kv_format=config.resolved_kv_dtype,
        tokenizer=model.tokenizer,
        codec=f"{config.weight_format}/{config.group_size}/{formats}",
        attention=f"{config.backend}/{origin.computed_by}",
    )


def _bytes_of(gigabytes: float) -> int:
    """At least one, where there is a limit: 0 would be none."""
    return math.ceil(gigabytes * 1e9)


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
