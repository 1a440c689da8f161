# SPDX-License-Identifier: Apache-2.0
"""A root seen from outside, by a person's tool: what it holds, whether that is right, and what is
to go. No engine is needed; stores that use the root meanwhile go on. It owns no segment.
"""

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from xxhash import xxh3_64_intdigest

from kt_kvcache.disk.files import OsFiles
from kt_kvcache.disk.format import Record, extent_seed
from kt_kvcache.disk.root import Root
from kt_kvcache.disk.segment import Segment

_MASK = (1 << 64) - 1
_STORE = "STORE"


@dataclass(slots=True)
class NamespaceInfo:
    """What one model, with its settings, has of one tenant.

    Attributes:
        ns_key: what tells it from others; names of models and tenants are stored nowhere.
        page_tokens: tokens per page.
        num_pages, num_bytes: its pages, and what they take.
        num_prefixes: pages that begin a sequence.
        newest_ns: when the last one was written, in ns since 1970.
    """

    ns_key: bytes
    page_tokens: int
    num_pages: int = 0
    num_bytes: int = 0
    num_prefixes: int = 0
    newest_ns: int = 0


@dataclass(frozen=True, slots=True)
class RootInfo:
    """Attributes:
    allocated_bytes: what the files take.
    page_bytes: how much of that are pages.
    num_segments, unreadable_segments: how many there are; those of other versions among them.
    namespaces: the one written last first.
    """

    allocated_bytes: int
    page_bytes: int
    num_segments: int
    unreadable_segments: int
    namespaces: tuple[NamespaceInfo, ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """Attributes:
    num_pages, num_bytes: what was read.
    bad_pages: those whose bytes are not what was written, or cannot be read.
    """

    num_pages: int
    num_bytes: int
    bad_pages: int


class Inspection:
    """An open root; one thread at a time, beside any number of stores. Use it as a context."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Opens the root of a store.

        Raises:
            ValueError: there is no store, or not one of this version, or no safe directory.
            OSError: it cannot be read.
        """
        if not (Path(root) / _STORE).is_file():
            raise ValueError(f"[kvstore.inspect] root must hold a store; got {str(root)!r}")
        self._files = OsFiles(root)
        try:
            self._root = Root(self._files, 0, 0)
        except BaseException:
            self._files.close_all()
            raise

    def info(self) -> RootInfo:
        """Reads all directories, no pages."""
        found: dict[bytes, NamespaceInfo] = {}
        readable = page_bytes = 0
        for segment in self._segments():
            readable += 1
            shape = segment.header.shape
            for _, record in _pages_of(segment):
                assert record.name is not None
                key = record.name.ns_key
                space = found.setdefault(key, NamespaceInfo(key, shape.page_tokens))
                space.num_pages += 1
                space.num_bytes += shape.slot_bytes
                space.num_prefixes += record.name.position == 0
                space.newest_ns = max(space.newest_ns, record.created_ns)
                page_bytes += shape.slot_bytes
        num_segments = len(self._root.segment_names())
        spaces = sorted(found.values(), key=lambda space: -space.newest_ns)
        return RootInfo(
            self._root.used_bytes(),
            page_bytes,
            num_segments,
            max(0, num_segments - readable),
            tuple(spaces),
        )

    def verify(self, *, drop_bad: bool = False) -> Verification:
        """Reads every page and compares its checksums. What is written meanwhile does not count.

        Args:
            drop_bad: forget what is bad, so that its place is used again. Stores would notice by
                themselves when they read such a page, and take it for one that is not there.
        """
        num_pages = num_bytes = num_bad = 0
        for segment in self._segments():
            pages = dict(_pages_of(segment))
            bad = [
                slot for slot, record in pages.items() if not self._is_right(segment, slot, record)
            ]
            changed = {slot for slot, _ in segment.changes(time.time_ns())} if bad else set()
            bad = [slot for slot in bad if slot not in changed]
            num_pages += len(pages)
            num_bytes += len(pages) * segment.header.shape.slot_bytes
            num_bad += len(bad)
            if drop_bad:
                self._free(segment, bad)
        return Verification(num_pages, num_bytes, num_bad)

    def drop(self, ns_key: bytes | None) -> int:
        """Forgets the pages of a namespace, or all of them; returns how many. They are gone when
        it returns; a store that has them in memory serves them from there until it ends.

        Raises:
            OSError: the root cannot be written.
        """
        num_dropped = 0
        for segment in self._segments():
            slots = [
                slot
                for slot, record in _pages_of(segment)
                if record.name is not None and ns_key in (None, record.name.ns_key)
            ]
            self._free(segment, slots)
            num_dropped += len(slots)
        return num_dropped

    def close(self) -> None:
        """Closes its files; idempotent."""
        self._files.close_all()

    def __enter__(self) -> "Inspection":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _segments(self) -> Iterator[Segment]:
        for name in sorted(self._root.segment_names()):
            segment = None
            with suppress(FileNotFoundError):  # given back meanwhile
                segment = Segment.open(self._files, name)
            if segment is not None:
                try:
                    if segment.header.store_id == self._root.store.store_id:
                        yield segment
                finally:
                    segment.close()

    def _is_right(self, segment: Segment, slot: int, record: Record) -> bool:
        shape = segment.header.shape
        assert record.name is not None
        # Aligned, as reading past the page cache wants it.
        with mmap.mmap(-1, shape.slot_bytes) as buffer:
            view = memoryview(buffer)
            try:
                offset = slot * shape.slot_bytes
                if self._files.preadv(segment.slots_fd, [view], offset) != shape.slot_bytes:
                    return False
                page = np.frombuffer(view, np.uint8)
                seed = extent_seed(record.name.hash, record.gen, slot)
                starts = range(0, shape.slot_bytes, shape.extent_bytes)
                sums = [
                    xxh3_64_intdigest(
                        page[start : start + shape.extent_bytes].data, (seed + i) & _MASK
                    )
                    for i, start in enumerate(starts)
                ]
                del page
                return tuple(sums) == record.sums
            except OSError:
                return False
            finally:
                view.release()

    def _free(self, segment: Segment, slots: list[int]) -> None:
        if slots:
            segment.free_records(slots)
            segment.sync()
            self._root.announce_drop()


def _pages_of(segment: Segment) -> Iterator[tuple[int, Record]]:
    for slot, record in segment.changes(time.time_ns()):
        if record is not None and record.name is not None:
            yield slot, record
