# SPDX-License-Identifier: Apache-2.0
"""The store's counters and the snapshot a caller gets; no exporter."""

from dataclasses import dataclass

from kt_kvcache.disk.counters import DiskStats


@dataclass(slots=True)
class Counters:
    """Events since the store was opened; written under the store's lock.

    Attributes:
        acquires, acquire_ns: calls of ``acquire``, and the ns that memory's part of them took,
            waiting for the lock included.
        hit_pages, hit_tokens: full pages that ``acquire`` found, and their tokens.
        missed_pages: full pages asked of ``acquire`` and not found.
        tail_tokens: tokens that ``acquire`` found in part of a page, below the last full one.
        published_pages: pages that entered the index.
        present_pages: committed pages that were in the index already.
        unlinked_pages: committed pages whose parent was not cached.
        evicted_pages: cached pages that gave way to ``reserve`` or ``load``.
        quota_evicted_pages: those of them that went because their space had more than its share.
        expired_pages: pages forgotten because they, or those above them, were too old.
        reasked_pages: pages published that had been evicted not long ago: with a larger store they
            would have been there.
        dropped_pages: pages that ``drop`` took out.
        leaked_handles: leases and writers that were garbage-collected unreleased.
    """

    acquires: int = 0
    acquire_ns: int = 0
    hit_pages: int = 0
    hit_tokens: int = 0
    missed_pages: int = 0
    tail_tokens: int = 0
    published_pages: int = 0
    present_pages: int = 0
    unlinked_pages: int = 0
    evicted_pages: int = 0
    quota_evicted_pages: int = 0
    expired_pages: int = 0
    reasked_pages: int = 0
    dropped_pages: int = 0
    leaked_handles: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """A consistent snapshot: free + cached + pinned + reserved pages = num_pages.

    Attributes:
        num_pages: size of the store in pages.
        free_pages: slots that hold nothing.
        cached_pages: published pages that nobody holds: all of them can be evicted.
        pinned_pages: published pages held by a lease or writer, directly or through a page below.
        reserved_pages: pages private to a writer, or being loaded.
        kept_pages: pages in the index that ``keep`` spares now; they count in the others too.
        open_leases: leases not released yet.
        open_writers: writers not released yet.
        oldest_lease_s: age in seconds of the oldest open lease; 0 without one.
        mismatched_pages: pages found by hash whose tokens or parent differed (served as misses).
        reask_gap_s: seconds for which the pages of ``reasked_pages`` were away, the median of the
            last 1,024.
        counters: events since the store was opened.
        disk: the pages on disk; None for a store in memory only.
    """

    num_pages: int
    free_pages: int
    cached_pages: int
    pinned_pages: int
    reserved_pages: int
    kept_pages: int
    open_leases: int
    open_writers: int
    oldest_lease_s: float
    mismatched_pages: int
    reask_gap_s: float
    counters: Counters
    disk: DiskStats | None = None
