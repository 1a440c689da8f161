# SPDX-License-Identifier: Apache-2.0
"""The store: spaces, statistics, end of life. It moves no pages itself."""

import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from time import monotonic
from types import TracebackType

from kt_kvcache.arena import Arena
from kt_kvcache.completion import Completion
from kt_kvcache.config import StoreConfig
from kt_kvcache.disk.files import OsFiles
from kt_kvcache.disk.tier import DiskTier
from kt_kvcache.errors import require_int, require_seconds, require_type
from kt_kvcache.events import EventStream
from kt_kvcache.identity import Geometry, Identity, ns_key, tenant_tag
from kt_kvcache.page_mover import open_page_mover
from kt_kvcache.ram_tier import RamTier
from kt_kvcache.space import Space
from kt_kvcache.stats import Stats
from kt_kvcache.window import window_of

_SECRET_BYTES = 32  # of the HMAC's hash: more adds nothing


class KVStore:
    """A prefix store over `num_pages` page slots, shared by all its spaces. Thread-safe.

    One lock covers all state; no call does I/O or copies page bytes under it.
    """

    def __init__(
        self, config: StoreConfig, arena: Arena | None, tier: RamTier, disk: DiskTier | None = None
    ) -> None:
        """Makes a store with nothing in memory; callers use ``open``."""
        self._config = config
        self._arena = arena
        self._tier = tier
        self._disk = disk
        # The secret that separates tenants lives as long as their pages.
        self._secret = secrets.token_bytes(_SECRET_BYTES) if disk is None else disk.secret

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
            root: directory for pages on disk, made where it is missing; any number of processes
                may use it at once. None: in memory only.
            config: sizes.
            arena: buffers behind the page ids; may be None where the caller addresses its own
                buffers by page id and never asks for a view. A root needs one.
            clock: seconds from any start, for what is kept and the age of leases.

        Raises:
            ValueError: an arena of another size than the configuration; a root without arena or
                disk_bytes, that is a symlink, or that others may write.
            OSError: the root cannot be read, or io="uring" is refused by the system.
        """
        require_type("open", "config", config, StoreConfig)
        if root is not None:
            require_type("open", "root", root, str, PathLike)
        if arena is not None:
            require_type("open", "arena", arena, Arena)
        if arena is not None and arena.num_pages != config.num_pages:
            raise ValueError(
                f"[kvstore.open] arena must have {config.num_pages} pages; got {arena.num_pages}"
            )
        tier = RamTier(
            config.num_pages,
            config.eviction(config.num_pages),
            clock,
            max_age_s=config.max_age_s,
        )
        if root is None:
            return cls(config, arena, tier)
        if arena is None or not config.disk_bytes:
            raise ValueError(
                "[kvstore.open] a root needs an arena and disk_bytes > 0; got "
                f"{'no arena' if arena is None else 'an arena'}, disk_bytes={config.disk_bytes}"
            )
        files = OsFiles(root)
        try:
            disk = DiskTier(
                files,
                open_page_mover(config.inflight_bytes, config.io),
                tier,
                arena,
                config,
            )
        except BaseException:
            files.close_all()
            raise
        return cls(config, arena, tier, disk)

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
        require_type("space", "identity", identity, Identity)
        require_type("space", "geometry", geometry, Geometry)
        if tenant is not None:
            require_type("space", "tenant", tenant, str)
        if geometry.page_tokens != self._config.page_tokens:
            raise ValueError(
                f"[kvstore.space] geometry must have {self._config.page_tokens} tokens per page; "
                f"got {geometry.page_tokens}"
            )
        self._require_fit(geometry)
        key = ns_key(identity, geometry, tenant_tag(self._secret, tenant))
        root = self._tier.root("space", key)
        disk = self._disk
        window = None if disk is None else window_of(geometry, disk.extent_bytes)
        return Space(self._tier, self._arena, root, geometry.page_tokens, disk, window)

    def flush(self, *, durable: bool = True, timeout: float | None = None) -> Completion[bool]:
        """Waits, in the background, until what was committed before is on disk.

        Args:
            durable: and survives a power cut, not only the end of this process.
            timeout: seconds after which the result is False; infinity is none.

        Returns:
            Whether it is: False if pages could not be written since the last flush (no room, too
            much at once, a drive that fails) or it took too long. True without a disk.
        """
        seconds = None if timeout is None else require_seconds("flush", "timeout", timeout)
        if self._disk is None:
            nothing: Completion[bool] = Completion()
            nothing.set_result(True)
            return nothing
        flushed = self._disk.flush(durable=durable)
        if seconds is not None and seconds <= threading.TIMEOUT_MAX:
            timer = threading.Timer(seconds, flushed.settle, (False,))
            timer.daemon = True
            timer.start()
            flushed.add_done_callback(lambda _: timer.cancel())
        return flushed

    def stats(self) -> Stats:
        """Returns page counts and counters as one snapshot; O(pages in the store)."""
        disk = None if self._disk is None else self._disk.stats()
        return replace(self._tier.stats(), disk=disk)

    def events(self, max_pending: int = 1 << 16) -> EventStream:
        """Returns a stream of the pages that are cached now and what changes; see there.

        O(pages in the store).

        Args:
            max_pending: events it holds at most until they are polled, some 150 bytes each.
        """
        stream = EventStream(require_int("events", "max_pending", max_pending, 1))
        self._tier.subscribe(stream)
        if self._disk is not None:
            self._disk.subscribe(stream)
        return stream

    def check_integrity(self) -> None:
        """Recomputes every invariant; O(pages in the store), for tests and idle time.

        Raises:
            IntegrityError: one is broken.
        """
        self._tier.check_integrity()
        if self._disk is not None:
            self._disk.check_integrity()

    def close(self) -> None:
        """Ends the store; idempotent. Its spaces, leases and writers raise StaleHandle on use.

        Waits until what was committed is written and durable, and for running reads.
        """
        if self._disk is not None:
            self._disk.close()
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
