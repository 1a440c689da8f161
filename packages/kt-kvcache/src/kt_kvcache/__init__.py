# SPDX-License-Identifier: Apache-2.0
"""A paged prefix store for KV caches: the public names. It schedules nothing, runs no kernels."""

from importlib.metadata import version

from kt_kvcache.arena import Arena, PageView
from kt_kvcache.chain import Chain, Extra
from kt_kvcache.completion import Completion
from kt_kvcache.config import StoreConfig
from kt_kvcache.disk.counters import DiskStats
from kt_kvcache.errors import IntegrityError, OutOfPages, StaleHandle
from kt_kvcache.events import EventStream, Removed, Stored, Tier
from kt_kvcache.identity import Geometry, Group, Identity, WindowGroup
from kt_kvcache.lease import Lease
from kt_kvcache.load import LoadResult
from kt_kvcache.page import PageState
from kt_kvcache.space import Hit, Space
from kt_kvcache.stats import Stats
from kt_kvcache.store import KVStore
from kt_kvcache.tail import Tail
from kt_kvcache.writer import Event, Writer

__version__ = version("kt-kvcache")

__all__ = (
    "Arena",
    "Chain",
    "Completion",
    "DiskStats",
    "Event",
    "EventStream",
    "Extra",
    "Geometry",
    "Group",
    "Hit",
    "Identity",
    "IntegrityError",
    "KVStore",
    "Lease",
    "LoadResult",
    "OutOfPages",
    "PageState",
    "PageView",
    "Removed",
    "Space",
    "StaleHandle",
    "Stats",
    "StoreConfig",
    "Stored",
    "Tail",
    "Tier",
    "WindowGroup",
    "Writer",
    "__version__",
)
