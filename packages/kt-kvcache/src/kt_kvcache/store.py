# SPDX-License-Identifier: Apache-2.0
"""The store: configuration, spaces, statistics, end of life. Pages live in memory only."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from time import monotonic
from types import TracebackType

from kt_kvcache.arena import Arena
from kt_kvcache.errors import require_int
from kt_kvcache.events import EventStream
from kt_kvcache.eviction import LruPolicy
from kt_kvcache.identity import Geometry, Identity, ns_key, tenant_tag
from kt_kvcache.ram_tier import RamTier
from kt_kvcache.space import Space
from kt_kvcache.stats import Stats

_SECRET_BYTES = 32  # of the HMAC's hash: more adds nothing


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Sizes of a store.

    Attributes:
        num_pages: page slots in memory.
        page_tokens: tokens per page. 64 loses 32 tokens per prefix on average to the page
            boundary and hashes 4x faster per token than 16.
    """

    num_pages: int
    page_tokens: int = 64

    def __post_init__(self) -> None:
        require_int("config", "num_pages", self.num_pages, 1)
        require_int("config", "page_tokens", self.page_tokens, 1)


class KVStore:
    """A prefix store over `num_pages` page slots, shared by all its spaces. Thread-safe.

    One lock covers all state; no call does I/O or copies page bytes under it.
    """

    def __init__(
        self, config: StoreConfig, arena: Arena | None, clock: Callable[[], float]
    ) -> None:
        """Makes an empty store; callers use ``open``."""
        self._config = config
        self._arena = arena
        self._tier = RamTier(config.num_pages, LruPolicy(), clock)
        # Pages die with the process, so the secret that separates tenants may too.
        self._secret = secrets.token_bytes(_SECRET_BYTES)

    @classmethod
    def open(
        cls,
        root: str | PathLike[str] | None = None,
        *,
        config: StoreConfig,
        arena: Arena | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> "KVStore":
        """Opens a store.

        Args:
            root: must be None: this version keeps pages in memory only.
            config: sizes.
            arena: buffers behind the page ids; may be None where the caller addresses its own
                buffers by page id and never asks for a view.
            clock: seconds from any start, for what is kept and the age of leases.

        Raises:
            ValueError: a root, or an arena of another size than the configuration.
        """
        if root is not None:
            raise ValueError(
                "[kvstore.open] root must be None: this version keeps pages in memory only; "
                f"got {str(root)!r}"
            )
        if arena is not None and arena.num_pages != config.num_pages:
            raise ValueError(
                f"[kvstore.open] arena must have {config.num_pages} pages; got {arena.num_pages}"
            )
        return cls(config, arena, clock)

    def space(self, identity: Identity, geometry: Geometry, tenant: str | None = None) -> Space:
        """Returns the namespace of a model and a tenant. O(1).

        Args:
            identity: what the KV bytes depend on besides tokens.
            geometry: their layout; must fit the store's page size and arena.
            tenant: derived by the server from who is asking, never copied from a request. None
                is a namespace of its own, for installations without tenants.

        Raises:
            ValueError: the geometry does not fit.
        """
        if geometry.page_tokens != self._config.page_tokens:
            raise ValueError(
                f"[kvstore.space] geometry must have {self._config.page_tokens} tokens per page; "
                f"got {geometry.page_tokens}"
            )
        self._require_fit(geometry)
        key = ns_key(identity, geometry, tenant_tag(self._secret, tenant))
        root = self._tier.root("space", key)
        return Space(self._tier, self._arena, root, geometry.page_tokens)

    def stats(self) -> Stats:
        """Returns page counts and counters as one snapshot; O(pages in the store)."""
        return self._tier.stats()

    def events(self, max_pending: int = 1 << 16) -> EventStream:
        """Returns a stream of the pages that are cached now and what changes; see there.

        O(pages in the store).

        Args:
            max_pending: events it holds at most until they are polled, some 150 bytes each.
        """
        stream = EventStream(require_int("events", "max_pending", max_pending, 1))
        self._tier.subscribe(stream)
        return stream

    def check_integrity(self) -> None:
        """Recomputes every invariant; O(pages in the store), for tests and idle time.

        Raises:
            IntegrityError: one is broken.
        """
        self._tier.check_integrity()

    def close(self) -> None:
        """Ends the store; idempotent. Its spaces, leases and writers raise StaleHandle on use."""
        self._tier.close()

    def __enter__(self) -> "KVStore":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _require_fit(self, geometry: Geometry) -> None:
        arena = self._arena
        if arena is None:
            return
        strides = tuple(g.bytes_per_page for g in geometry.groups for _ in range(g.num_layers))
        if strides != arena.strides:
            raise ValueError(
                "[kvstore.space] the groups' bytes per page must be those of the arena's layers, "
                f"{arena.strides}; got {strides}"
            )
