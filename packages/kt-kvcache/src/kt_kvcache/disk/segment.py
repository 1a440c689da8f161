# SPDX-License-Identifier: Apache-2.0
"""One segment: a file of fixed slots and its directory of records. It decides nothing.

<id>.kvd holds the header, a record per slot and times of use, <id>.kvs the slots. Whoever has the
lock of the directory owns the segment and alone writes slots; everybody may read both.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from kt_kvcache.disk.files import Files
from kt_kvcache.disk.format import (
    HEADER_BYTES,
    USED_BYTES,
    Record,
    SegmentHeader,
    pack_header,
    pack_record,
    parse_header,
    parse_record,
)
from kt_kvcache.page import CachedPage

DIRECTORY, SLOTS = ".kvd", ".kvs"

_SUM_BYTES = 8
# Records read at once: a directory may have hundreds of MB, and memory is for pages.
_READ_BYTES = 8 << 20
# mtime moves with the kernel's tick (at most 10 ms): what changed just before we looked may change
# again without a new mtime.
_MTIME_TICK_NS = 50_000_000


class Segment:
    """An open segment.

    Attributes:
        header: shape and number of its slots.
        owned: whether this store writes it: it has the lock, and read it since.
        slots_fd: the file of slots.
        gens: (num_slots,) generation of each slot's last record.
        sums: (num_slots, num_extents) checksums of the page in each slot.
        pages: per slot the page that the index has there.
        next_gen: generation of the next record written.
        dirty: whether anything was written since ``sync``.
    """

    def __init__(
        self, files: Files, header: SegmentHeader, directory_fd: int, slots_fd: int, owned: bool
    ) -> None:
        """Takes over the open files; callers use ``create`` or ``open``."""
        num_slots = header.num_slots
        self.header = header
        self.owned = owned
        self.slots_fd = slots_fd
        self.gens = np.zeros(num_slots, np.uint64)
        self.sums = np.zeros((num_slots, header.shape.num_extents), np.uint64)
        self.pages: list[CachedPage | None] = [None] * num_slots
        self.next_gen = 1
        self.dirty = False
        self._is_new = False  # its names may not survive a power cut yet
        self._files = files
        self._directory_fd = directory_fd
        # The checksum of each record as it was read or written last: says what others changed.
        self._seen = np.zeros(num_slots, np.uint64)
        self._seen_mtime = -1
        self._used = np.zeros(num_slots, np.uint64)  # as written last
        # A read may still use the files when the segment has gone from the index.
        self._closer = finalize(self, _close, files, directory_fd, slots_fd)

    @classmethod
    def create(cls, files: Files, header: SegmentHeader) -> "Segment":
        """Makes, allocates and locks a new segment; its first ``sync`` makes it durable.

        Others must not look for abandoned files meanwhile (the budget's lock).
        """
        name = header.segment_id.hex()
        fds: list[int] = []
        try:
            fds.append(files.open(name + SLOTS, create=True, direct=True))
            files.allocate(fds[0], header.num_slots * header.shape.slot_bytes)
            fds.append(files.open(name + DIRECTORY, create=True))
            files.try_lock(fds[1])
            files.allocate(fds[1], directory_bytes(header))
            files.pwrite(fds[1], pack_header(header), 0)
        except OSError:
            for fd in fds:
                files.close(fd)
            for suffix in (DIRECTORY, SLOTS):
                with suppress(OSError):
                    files.unlink(name + suffix)
            raise
        segment = cls(files, header, fds[1], fds[0], owned=True)
        segment._is_new = True
        return segment

    @classmethod
    def open(cls, files: Files, name: str) -> "Segment | None":
        """Opens the segment `name`; None if its files are not a whole segment of this version."""
        directory_fd = files.open(name + DIRECTORY)
        slots_fd = -1
        try:
            header = parse_header(files.pread(directory_fd, HEADER_BYTES, 0))
            if header is not None and header.segment_id.hex() == name:
                slots_fd = files.open(name + SLOTS, direct=True)
                sizes = files.status(directory_fd)[0], files.status(slots_fd)[0]
                whole = directory_bytes(header), header.num_slots * header.shape.slot_bytes
                if sizes == whole:
                    return cls(files, header, directory_fd, slots_fd, owned=False)
        except OSError:
            _close(files, directory_fd, slots_fd)
            raise
        _close(files, directory_fd, slots_fd)
        return None

    @property
    def name(self) -> str:
        """Name of its files, without suffix."""
        return self.header.segment_id.hex()

    @property
    def num_bytes(self) -> int:
        """Bytes that its files take."""
        header = self.header
        return directory_bytes(header) + header.num_slots * header.shape.slot_bytes

    def try_lock(self) -> bool:
        """Takes the lock if nobody has it; True if it is this store's now."""
        return self._files.try_lock(self._directory_fd)

    def has_changed(self) -> bool:
        """Whether the directory was written since ``changes`` read it; may say yes in doubt."""
        return self._files.status(self._directory_fd)[1] != self._seen_mtime

    def changes(self, now_ns: int) -> Iterator[tuple[int, Record | None]]:
        """Reads the directory and yields (slot, record) of what differs from last time.

        None stands for a slot without a valid record. `now_ns` is the system's time.
        """
        mtime = self._files.status(self._directory_fd)[1]
        self._seen_mtime = mtime if mtime < now_ns - _MTIME_TICK_NS else -1
        shape = self.header.shape
        size, num_slots = shape.record_bytes, self.header.num_slots
        step = max(1, _READ_BYTES // size)
        for first in range(0, num_slots, step):
            n = min(step, num_slots - first)
            raw = self._files.pread(self._directory_fd, n * size, HEADER_BYTES + first * size)
            n = len(raw) // size  # fewer if somebody cut the file
            rows = np.frombuffer(raw, np.uint8, n * size).reshape(n, size)
            checksums = rows[:, -_SUM_BYTES:].copy().view(np.uint64).ravel()
            changed = np.flatnonzero(checksums != self._seen[first : first + n])
            self._seen[first : first + n] = checksums
            for i in changed.tolist():
                record = parse_record(raw[i * size : (i + 1) * size], shape, first + i)
                if record is not None:
                    self.gens[first + i] = record.gen
                    self.next_gen = max(self.next_gen, record.gen + 1)
                    if record.name is not None:
                        self.sums[first + i] = record.sums
                yield first + i, record

    def write_records(self, slots: Sequence[int], records: Sequence[Record]) -> None:
        """Writes records, consecutive ones together; not synced."""
        shape = self.header.shape
        start = 0
        packed = [
            pack_record(record, shape, slot) for slot, record in zip(slots, records, strict=True)
        ]
        self.dirty = True
        for end in range(1, len(slots) + 1):
            if end == len(slots) or slots[end] != slots[end - 1] + 1:
                offset = HEADER_BYTES + slots[start] * shape.record_bytes
                self._files.pwrite(self._directory_fd, b"".join(packed[start:end]), offset)
                start = end
        for slot, raw in zip(slots, packed, strict=True):
            self._seen[slot] = int.from_bytes(raw[-_SUM_BYTES:], "little")

    def last_used(self) -> NDArray[np.uint64]:
        """Reads when the page in each slot was used last, in ns since 1970, as far as known."""
        num_slots = self.header.num_slots
        raw = self._files.pread(self._directory_fd, num_slots * USED_BYTES, self._used_offset)
        used = np.zeros(num_slots, np.uint64)
        used[: len(raw) // USED_BYTES] = np.frombuffer(raw, "<u8", len(raw) // USED_BYTES)
        return used

    def write_last_used(self, used: NDArray[np.uint64]) -> None:
        """Keeps when each slot was used last, if that has changed; not synced."""
        if not np.array_equal(used, self._used):
            raw = used.astype("<u8").tobytes()
            self._files.pwrite(self._directory_fd, raw, self._used_offset)
            self._used = used

    @property
    def _used_offset(self) -> int:
        return HEADER_BYTES + self.header.num_slots * self.header.shape.record_bytes

    def free_records(self, slots: Sequence[int]) -> None:
        """Says in the directory that these slots hold nothing; not synced."""
        ordered = sorted(slots)
        self.write_records(ordered, [Record(int(self.gens[slot])) for slot in ordered])

    def sync(self) -> None:
        """Returns once all that was written survives a power cut."""
        self.dirty = False
        try:
            self._files.sync(self.slots_fd)
            self._files.sync(self._directory_fd)
            if self._is_new:
                self._files.sync_names()
                self._is_new = False
        except OSError:
            self.dirty = True
            raise

    def close(self) -> None:
        """Closes its files and gives up the lock; idempotent."""
        self._closer()


def directory_bytes(header: SegmentHeader) -> int:
    """Size of a segment's directory."""
    return HEADER_BYTES + header.num_slots * (header.shape.record_bytes + USED_BYTES)


def _close(files: Files, *fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            with suppress(OSError):
                files.close(fd)
