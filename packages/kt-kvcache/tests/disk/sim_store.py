# SPDX-License-Identifier: Apache-2.0
"""A store over simulated files, and how long machines of random calls run on it."""

from hypothesis import HealthCheck, Phase, settings

from kt_kvcache import Arena, Completion, KVStore, StoreConfig
from kt_kvcache.disk.tier import DiskTier
from kt_kvcache.eviction import LruPolicy
from kt_kvcache.page_mover import ThreadPageMover
from kt_kvcache.ram_tier import RamTier

from .known_pages import PAGE_TOKENS, SLOT_BYTES, STRIDES
from .sim_files import SimFiles

RANDOM_CALLS = settings(
    max_examples=60,
    derandomize=True,
    stateful_step_count=30,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def sim_store(
    files: SimFiles,
    *,
    num_pages: int = 32,
    disk_pages: int = 64,
    arena: Arena | None = None,
    slot_bytes: int = SLOT_BYTES,
    **options: float | str,
) -> KVStore:
    arena = arena or Arena.allocate(num_pages, STRIDES)
    ram = RamTier(num_pages, LruPolicy())
    config = StoreConfig(
        num_pages,
        PAGE_TOKENS,
        disk_bytes=disk_pages * (slot_bytes + 520) + 8 * 4096,
        min_free_bytes=0,
        inflight_bytes=1 << 20,
        **options,
    )
    mover = ThreadPageMover(1, 1 << 20, preadv=files.preadv, pwritev=files.pwritev)
    disk = DiskTier(files, mover, ram, arena, config)
    return KVStore(config, arena, ram, disk)


def look(store: KVStore) -> None:
    """Has a store look now at what other processes did, as it does every second."""
    worker = store._disk._worker
    worker._call(lambda: setattr(worker, "_next_refresh", 0.0), Completion(), None)
    store.flush(durable=False).result(30)
