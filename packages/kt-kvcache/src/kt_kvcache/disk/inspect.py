# SPDX-License-Identifier: Apache-2.0
"""Looks into a root from outside, while stores use it or not: list, verify, scrub, drop. It opens
no store, owns no segment and adds no page.

What scrub and drop free, running stores notice within seconds and forget.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_intdigest

from kt_kvcache.disk.files import OsFiles
from kt_kvcache.disk.format import PageName, Record, extent_seed
from kt_kvcache.disk.root import STORE, Root
from kt_kvcache.disk.segment import Segment
from kt_kvcache.disk.wear import Wear

_MASK = (1 << 64) - 1
_EVER = 1 << 62  # a time that makes every mtime old: a directory is read here once


@dataclass(frozen=True, slots=True)
class StoredPage:
    """A page that a directory names; its bytes may be bad.

    Attributes:
        segment, slot: where it lies.
        name: its hash, parent, namespace, position and body.
        created_ns: when its KV was computed, in ns since the epoch.
        page_tokens: its tokens.
        num_bytes: bytes of its slot.
    """

    segment: str
    slot: int
    name: PageName
    created_ns: int
    page_tokens: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class RootSummary:
    """What a root holds.

    Attributes:
        num_segments: segments of this version.
        num_foreign_segments: files of segments that are not whole, or of another version or store.
        allocated_bytes: what all of them take.
        num_slots: slots of the first kind.
        num_pages, page_bytes: pages in them, and the bytes of their slots.
        written_last_day_bytes: written in 24 hours (whole hours: up to 25), by all processes, up to
            a minute ago.
        namespaces: pages by namespace key.
    """

    num_segments: int
    num_foreign_segments: int
    allocated_bytes: int
    num_slots: int
    num_pages: int
    page_bytes: int
    written_last_day_bytes: int
    namespaces: dict[bytes, int]


@dataclass(frozen=True, slots=True)
class Verified:
    """What reading all payloads found.

    Attributes:
        num_pages, num_bytes: pages read, good and bad.
        bad: pages whose bytes are not those written, or cannot be read.
        num_freed: how many of these were freed.
    """

    num_pages: int
    num_bytes: int
    bad: tuple[StoredPage, ...]
    num_freed: int


def stored_pages(root: str | os.PathLike[str]) -> Iterator[StoredPage]:
    """Yields all pages of a root; reads directories only, writes nothing.

    Raises:
        ValueError: `root` is no store of this version.
        OSError: it cannot be read.
    """
    with _opened(root, writable=False) as (_, segments):
        for segment in segments:
            for slot, record in _records(segment):
                yield _page(segment, slot, record)


def summarise(root: str | os.PathLike[str]) -> RootSummary:
    """Counts what a root holds; reads directories only. Raises as ``stored_pages``."""
    namespaces: dict[bytes, int] = {}
    with _opened(root, writable=False) as (opened, segments):
        page_bytes = 0
        for segment in segments:
            for _, record in _records(segment):
                assert record.name is not None  # _records yields pages
                key = record.name.ns_key
                namespaces[key] = namespaces.get(key, 0) + 1
                page_bytes += segment.header.shape.slot_bytes
        return RootSummary(
            num_segments=len(segments),
            num_foreign_segments=len(opened.segment_names()) - len(segments),
            allocated_bytes=opened.used_bytes(),
            num_slots=sum(segment.header.num_slots for segment in segments),
            num_pages=sum(namespaces.values()),
            page_bytes=page_bytes,
            written_last_day_bytes=Wear(opened, 0).last_day(),
            namespaces=namespaces,
        )


def verify(root: str | os.PathLike[str], *, scrub: bool = False) -> Verified:
    """Reads the payloads of all pages and compares them with their checksums.

    Args:
        root: the directory.
        scrub: also free the bad ones. Nothing is lost by it: they are misses either way.

    Raises:
        ValueError, OSError: as ``stored_pages``.
    """
    num_pages, num_bytes, bad, num_freed = 0, 0, [], 0
    with _opened(root, writable=scrub) as (opened, segments):
        for segment in segments:
            wrong: list[tuple[int, Record]] = []
            for slot, record in _records(segment):
                num_pages += 1
                num_bytes += segment.header.shape.slot_bytes
                if not _is_good(opened, segment, slot, record):
                    wrong.append((slot, record))
            if wrong:
                # Its owner may have put another page there while we read: then it is not bad.
                changed = {slot for slot, _ in segment.changes(_EVER)}
                wrong = [(slot, record) for slot, record in wrong if slot not in changed]
            bad += [_page(segment, slot, record) for slot, record in wrong]
            if scrub and wrong:
                num_freed += _free(opened, segment, [slot for slot, _ in wrong])
    return Verified(num_pages, num_bytes, tuple(bad), num_freed)


def drop(root: str | os.PathLike[str], ns_key_prefix: bytes = b"") -> int:
    """Frees all pages of the namespaces whose key begins so, for good; all pages without one.

    Returns:
        Number of pages.

    Raises:
        ValueError, OSError: as ``stored_pages``; OSError also where the root cannot be written.
    """
    num_freed = 0
    with _opened(root, writable=True) as (opened, segments):
        for segment in segments:
            slots = []
            for slot, record in _records(segment):
                assert record.name is not None  # _records yields pages
                if record.name.ns_key.startswith(ns_key_prefix):
                    slots.append(slot)
            if slots:
                num_freed += _free(opened, segment, slots)
    return num_freed


@contextmanager
def _opened(
    root: str | os.PathLike[str], *, writable: bool
) -> Iterator[tuple[Root, list[Segment]]]:
    if not Path(root).is_dir():
        raise ValueError(f"[kvstore.inspect] root must be a directory; got {str(root)!r}")
    files = OsFiles(root)
    segments: list[Segment] = []
    try:
        if STORE not in files.names():
            raise ValueError(
                "[kvstore.inspect] root must be a directory that a store has written to, with its "
                f"file {STORE}; got {str(root)!r}, which has none"
            )
        could_write = not files.read_only
        files.read_only = True  # nothing is made of what is not a store
        opened = Root(files, 0, 0)
        files.read_only = not (writable and could_write)
        for name in sorted(opened.segment_names()):
            with suppress(FileNotFoundError):  # given back meanwhile
                segment = Segment.open(files, name)
                if segment is not None:
                    if segment.header.store_id == opened.store.store_id:
                        segments.append(segment)
                    else:
                        segment.close()
        yield opened, segments
    finally:
        for segment in segments:
            segment.close()
        files.close_all()


def _records(segment: Segment) -> list[tuple[int, Record]]:
    return [
        (slot, record)
        for slot, record in segment.changes(_EVER)
        if record is not None and record.name is not None
    ]


def _page(segment: Segment, slot: int, record: Record) -> StoredPage:
    assert record.name is not None  # _records yields pages
    shape = segment.header.shape
    return StoredPage(
        segment.name, slot, record.name, record.created_ns, shape.page_tokens, shape.slot_bytes
    )


def _is_good(root: Root, segment: Segment, slot: int, record: Record) -> bool:
    shape = segment.header.shape
    raw = np.frombuffer(mmap.mmap(-1, shape.slot_bytes), np.uint8)
    left, offset = raw.data, slot * shape.slot_bytes
    try:
        while left.nbytes:
            num_read = root.files.preadv(segment.slots_fd, [left], offset)
            if num_read <= 0:
                return False
            left, offset = left[num_read:], offset + num_read
    except OSError:
        return False
    assert record.name is not None  # _records yields pages
    seed = extent_seed(record.name.hash, record.gen, slot)
    return all(
        xxh3_64_intdigest(raw[start : start + shape.extent_bytes].data, (seed + extent) & _MASK)
        == expected
        for (extent, start), expected in zip(
            enumerate(range(0, shape.slot_bytes, shape.extent_bytes)), record.sums, strict=True
        )
    )


def _free(root: Root, segment: Segment, slots: list[int]) -> int:
    segment.free_records(slots)
    segment.sync()
    root.announce_drop()
    return len(slots)
