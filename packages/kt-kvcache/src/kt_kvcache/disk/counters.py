# SPDX-License-Identifier: Apache-2.0
"""What a disk tier counts, and the snapshot a caller gets; no exporter."""

from dataclasses import dataclass


@dataclass(slots=True)
class DiskCounters:
    """Events since the store was opened. Written by a few threads without a lock: each field has
    one writer or is only ever added to under the interpreter's own.

    Attributes:
        hit_pages, hit_tokens: full pages that ``acquire`` found on disk and not in memory, and
            their tokens.
        tail_tokens: tokens that it found there in part of a page.
        loaded_pages, loaded_bytes: read and verified.
        shared_pages: that a load found in memory in the end: another one had brought them.
        scrubbed_pages: read and compared while nothing else was to be done.
        written_pages, written_bytes: on disk with their records.
        dropped_writes: pages not written: gone from memory before their turn, no room on disk, the
            drive failed, or the day's limit was reached.
        capped_writes: those of them that the day's limit kept from being written.
        oversized_pages: pages not written because their extras do not fit into a record.
        evicted_pages: pages that gave way to others.
        quota_evicted_pages: those of them that went because their space had more than its share.
        expired_pages: pages forgotten because they, or those above them, were too old.
        damaged_pages: pages forgotten because they, or those above them, could not be read rightly.
        reasked_pages: pages written that had been evicted not long ago.
        yielded_segments, yielded_pages: given to other processes that had fewer, and the pages
            forgotten with them.
        dropped_pages: pages that ``drop`` took out.
        bad_records: records read that are not whole, of this version and of their slot.
        checksum_misses: pages read whose bytes were not those written (served as misses).
        read_errors: pages that the system could not read (served as misses).
        io_errors: failed calls besides reading pages.
        no_space: writes that found the file system full.
        missed_deadlines: loads that ended at their deadline.
        degraded_ms: for how long writing was given up after failures.
    """

    hit_pages: int = 0
    hit_tokens: int = 0
    tail_tokens: int = 0
    loaded_pages: int = 0
    loaded_bytes: int = 0
    shared_pages: int = 0
    scrubbed_pages: int = 0
    written_pages: int = 0
    written_bytes: int = 0
    dropped_writes: int = 0
    capped_writes: int = 0
    oversized_pages: int = 0
    evicted_pages: int = 0
    quota_evicted_pages: int = 0
    expired_pages: int = 0
    damaged_pages: int = 0
    reasked_pages: int = 0
    yielded_segments: int = 0
    yielded_pages: int = 0
    dropped_pages: int = 0
    bad_records: int = 0
    checksum_misses: int = 0
    read_errors: int = 0
    io_errors: int = 0
    no_space: int = 0
    missed_deadlines: int = 0
    degraded_ms: int = 0


@dataclass(frozen=True, slots=True)
class DiskStats:
    """A snapshot of the disk tier.

    Attributes:
        num_pages: pages known, other processes' among them.
        evictable_pages: our own that nobody holds.
        free_slots: slots of our segments that hold nothing.
        bad_slots: slots at which the drive failed: not used again.
        num_segments: segments known.
        owned_segments: those that this store writes.
        allocated_bytes: what the segments known take.
        budget_bytes: what all segments together may take.
        mismatched_pages: pages found by hash whose tokens or parent differed (served as misses).
        unwritten_pages: pages in memory that the write policy holds back until later.
        written_last_day_bytes: written in 24 hours (whole hours: up to 25), by all processes on the
            root, restarts included; what others wrote is known a minute later.
        reading_bytes, writing_bytes: on their way now.
        read_p50_s, read_p99_s: seconds from asking for a batch of pages (8 MiB at most) to having
            it verified, of the last 1,024 batches.
        write_p50_s, write_p99_s: seconds from sending a batch of pages to having its records
            written.
        reask_gap_s: seconds for which the pages of ``reasked_pages`` were away, the median.
        degraded: whether writing has failed and waits for its next try.
        read_only: whether the root cannot be written at all.
        io: what moves the bytes, "threads" or "uring".
        counters: events since the store was opened.
    """

    num_pages: int
    evictable_pages: int
    free_slots: int
    bad_slots: int
    num_segments: int
    owned_segments: int
    allocated_bytes: int
    budget_bytes: int
    mismatched_pages: int
    unwritten_pages: int
    written_last_day_bytes: int
    reading_bytes: int
    writing_bytes: int
    read_p50_s: float
    read_p99_s: float
    write_p50_s: float
    write_p99_s: float
    reask_gap_s: float
    degraded: bool
    read_only: bool
    io: str
    counters: DiskCounters
