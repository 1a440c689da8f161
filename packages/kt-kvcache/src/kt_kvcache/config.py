# SPDX-License-Identifier: Apache-2.0
"""StoreConfig: every setting of a store, checked once. It opens nothing."""

from dataclasses import dataclass

from kt_kvcache.errors import is_number, require_int
from kt_kvcache.eviction import BranchPolicy, EvictionPolicy
from kt_kvcache.page_mover import IO_CHOICES
from kt_kvcache.quota import QuotaPolicy

WRITE_POLICIES = ("through", "selective", "back")


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Sizes, limits and policies of a store.

    Attributes:
        num_pages: page slots in memory.
        page_tokens: tokens per page. 64 loses 32 tokens per prefix on average to the page
            boundary and hashes 4x faster per token than 16.
        disk_bytes: what a root's files may take, of all processes together; needed with a root.
        min_free_bytes: what the root's file system keeps free: the store grows no further.
        inflight_bytes: bytes being read or written at once.
        io: how: "threads", each in a call of its own, or "uring", by Linux's io_uring. "auto" is
            whichever was measured to be faster of those that the system lets us use.
        durability_s: seconds of pages that a power cut may lose.
        write_policy: which pages in memory are written to disk, and when; writes are never waited
            for, and what cannot be written before memory needs its slot is dropped and counted.
            "through": every page, at once. "selective": a page once `write_uses` sequences have
            had it, the one that computed it counted, so that what is asked for once never
            reaches the drive. "back": pages that memory, three quarters full, would soon evict
            (those whose last use is in the older half of what it holds), and at ``flush`` and
            ``close`` all: a killed process loses the rest.
        write_uses: see "selective".
        daily_write_bytes: most that all processes write in 24 hours, to spare the drive; 0: no
            limit. What is beyond is dropped and counted. The hours' sums are kept in the root.
        read_bytes_per_s, write_bytes_per_s: most that is read, and written, on average; 0: no
            limit. Loads and writes then wait, engines never do; nor do ``flush``, ``drop`` and
            ``close``, which write what is left at once.
        max_age_s: seconds after which a page that was computed is not found any more, in memory
            or on disk, nor what follows it, and its slot is free; 0: never. Use does not make it
            younger, nor do restarts or ``keep``. (``drop`` is what erases at once.)
        tenant_share: part of the pages, in memory and on disk, that a space (a model and a tenant)
            is sure of: while one has more, others lose none to it. 1: the least used pages go,
            whoever's they are.
    """

    num_pages: int
    page_tokens: int = 64
    disk_bytes: int = 0
    min_free_bytes: int = 1 << 30
    # Enough for any drive: what it has in flight is bandwidth x latency, 7 GB/s x 1 ms = 7 MB.
    inflight_bytes: int = 64 << 20
    io: str = "auto"
    durability_s: float = 5.0
    write_policy: str = "through"
    write_uses: int = 2
    daily_write_bytes: int = 0
    read_bytes_per_s: int = 0
    write_bytes_per_s: int = 0
    max_age_s: float = 0.0
    tenant_share: float = 1.0

    def __post_init__(self) -> None:
        require_int("config", "num_pages", self.num_pages, 1)
        require_int("config", "page_tokens", self.page_tokens, 1)
        require_int("config", "disk_bytes", self.disk_bytes, 0)
        require_int("config", "min_free_bytes", self.min_free_bytes, 0)
        require_int("config", "inflight_bytes", self.inflight_bytes, 1)
        if self.io not in IO_CHOICES:
            raise ValueError(f"[kvstore.config] io must be one of {IO_CHOICES}; got {self.io!r}")
        if self.write_policy not in WRITE_POLICIES:
            raise ValueError(
                f"[kvstore.config] write_policy must be one of {WRITE_POLICIES}; "
                f"got {self.write_policy!r}"
            )
        require_int("config", "write_uses", self.write_uses, 1)
        require_int("config", "daily_write_bytes", self.daily_write_bytes, 0)
        require_int("config", "read_bytes_per_s", self.read_bytes_per_s, 0)
        require_int("config", "write_bytes_per_s", self.write_bytes_per_s, 0)
        if not (is_number(self.durability_s) and self.durability_s > 0):
            raise ValueError(
                f"[kvstore.config] durability_s must be seconds > 0; got {self.durability_s!r}"
            )
        if not (is_number(self.max_age_s) and 0 <= self.max_age_s < float("inf")):
            raise ValueError(
                f"[kvstore.config] max_age_s must be seconds >= 0; got {self.max_age_s!r}"
            )
        if not (is_number(self.tenant_share) and 0 < self.tenant_share <= 1):
            raise ValueError(
                "[kvstore.config] tenant_share must be greater than 0, at most 1; got "
                f"{self.tenant_share!r}"
            )

    def eviction(self, num_pages: int) -> EvictionPolicy:
        """Returns how a tier of so many pages chooses which one goes."""
        if self.tenant_share == 1:
            return BranchPolicy()
        return QuotaPolicy(BranchPolicy(), int(self.tenant_share * num_pages))
