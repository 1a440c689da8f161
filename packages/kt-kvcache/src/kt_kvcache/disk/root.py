# SPDX-License-Identifier: Apache-2.0
"""A root directory: what it is (STORE), how much it may hold (budget.lock), which segments it has.
It knows no pages.

    STORE          format version, id, tenant secret
    budget.lock    locked while space is taken, given back or abandoned segments are looked for
    DROPS          changes whenever somebody freed records of a segment that is not his
    <id>.kvd/.kvs  segments
    <id>.ask       locked by a process that has too little of the budget: how many segments it has
"""

import errno
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kt_kvcache.disk.files import Files
from kt_kvcache.disk.format import (
    HEADER_BYTES,
    ID_BYTES,
    SECRET_BYTES,
    STORE_BYTES,
    SegmentHeader,
    SlotShape,
    StoreFile,
    pack_store,
    parse_store,
)
from kt_kvcache.disk.segment import DIRECTORY, SLOTS, Segment

_ASK, _ASK_BYTES = ".ask", 4
STORE, _NEW_STORE, _LOCK, _DROPS = "STORE", "STORE.new", "budget.lock", "DROPS"
_DROPS_BYTES = 16
# Who holds the lock allocates at most one segment. Longer means that it hangs: then nothing is
# written here, and tried again later.
_LOCK_TIMEOUT_S = 5.0
_LOCK_POLL_S = 0.005
# A segment's share of the budget. Few segments keep few files open; many waste less where models
# alternate or processes share. In between, what a drive reads in a tenth of a second.
_MIN_SHARE, _MAX_SHARE, _SEGMENT_BYTES = 64, 8, 64 << 20


class Root:
    """The files of a store. Used by one thread at a time, by any number of processes."""

    def __init__(self, files: Files, disk_bytes: int, min_free_bytes: int) -> None:
        """Reads STORE, or makes it.

        Args:
            files: of the directory.
            disk_bytes: what all segments together may take.
            min_free_bytes: what the file system must have left after taking a segment.

        Raises:
            ValueError: STORE is not a file of this version, or missing and cannot be made.
            OSError: the directory cannot be read.
        """
        self.files = files
        self._disk_bytes = disk_bytes
        self._min_free_bytes = min_free_bytes
        self._asking: tuple[str, int] | None = None  # name and descriptor of our <id>.ask
        self.store = self._open_store()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the budget's lock; OSError (EAGAIN) if somebody else does not let go of it."""
        try:
            fd = self.files.open(_LOCK)
        except FileNotFoundError:
            with suppress(FileExistsError):
                self.files.close(self.files.open(_LOCK, create=True))
            fd = self.files.open(_LOCK)
        try:
            give_up = time.monotonic() + _LOCK_TIMEOUT_S
            while not self.files.try_lock(fd):
                if time.monotonic() > give_up:
                    raise OSError(errno.EAGAIN, "the budget's lock stays held", _LOCK)
                time.sleep(_LOCK_POLL_S)
            yield
        finally:
            self.files.close(fd)

    def segment_names(self) -> set[str]:
        """Names of all segments there are."""
        return {name.removesuffix(DIRECTORY) for name in self._names(DIRECTORY)}

    def used_bytes(self) -> int:
        """Bytes that all segments take."""
        total = 0
        for suffix in (DIRECTORY, SLOTS):
            for name in self._names(suffix):
                with suppress(FileNotFoundError):  # its owner has just given it back
                    total += self.files.status(name)[0]
        return total

    def last_change(self, name: str) -> int:
        """Time in ns when a segment's directory was written last; 0 if it has gone."""
        try:
            return self.files.status(name + DIRECTORY)[1]
        except FileNotFoundError:
            return 0

    def num_slots(self, shape: SlotShape) -> int:
        """Slots of a new segment of this shape.

        Raises:
            ValueError: the budget does not hold even one.
        """
        slot = shape.num_bytes
        share = min(self._disk_bytes // _MAX_SHARE, _SEGMENT_BYTES)
        share = max(share, self._disk_bytes // _MIN_SHARE, slot + HEADER_BYTES)
        if share > self._disk_bytes:
            raise ValueError(
                f"[kvstore.open] disk_bytes must hold a page of {slot + HEADER_BYTES} bytes; "
                f"got {self._disk_bytes}"
            )
        return (share - HEADER_BYTES) // slot

    def create_segment(self, shape: SlotShape) -> Segment | None:
        """Makes a segment where the budget has room.

        Abandoned segments of other shapes make room, longest untouched first: the model that runs
        needs the space more than one that does not.

        Returns:
            The segment, owned; None if there is no room.
        """
        header = SegmentHeader(
            self.store.store_id, secrets.token_bytes(ID_BYTES), shape, self.num_slots(shape)
        )
        size = HEADER_BYTES + header.num_slots * shape.num_bytes
        with self.locked():
            self._sweep()
            while not self._has_room(size):
                if not self._reclaim(shape):
                    return None
            return Segment.create(self.files, header)

    def ask(self, num_owned: int) -> None:
        """Tells the other processes that we want a segment and have `num_owned`.

        Raises:
            OSError: they cannot be told.
        """
        with self.locked():
            if self._asking is None:
                name = secrets.token_hex(ID_BYTES) + _ASK
                self._asking = name, self.files.open(name, create=True)
                self.files.try_lock(self._asking[1])
            self.files.pwrite(self._asking[1], num_owned.to_bytes(_ASK_BYTES, "little"), 0)

    def stop_asking(self) -> None:
        """Takes back what ``ask`` told; idempotent."""
        if self._asking is not None:
            name, fd = self._asking
            self._asking = None
            self.files.close(fd)
            with suppress(OSError):  # whoever finds it sees that nobody has the lock
                self.files.unlink(name)

    def asked(self) -> int | None:
        """Returns how many segments whoever asks and has the fewest has; None if nobody asks.

        Raises:
            OSError: the directory cannot be read, or its lock not be had.
        """
        ours = None if self._asking is None else self._asking[0]
        names = [name for name in self._names(_ASK) if name != ours]
        counts: list[int] = []
        if names:
            with self.locked():
                for name in names:
                    with suppress(FileNotFoundError):  # has just got one
                        fd = self.files.open(name)
                        try:
                            if self.files.try_lock(fd):  # has died
                                self.files.unlink(name)
                                continue
                            raw = self.files.pread(fd, _ASK_BYTES, 0)
                            counts.append(int.from_bytes(raw, "little"))
                        finally:
                            self.files.close(fd)
        return min(counts, default=None)

    def has_room_for(self, segment: Segment) -> bool:
        """Whether another segment of this size fits into the budget."""
        return self._has_room(segment.num_bytes)

    def give_back(self, segment: Segment) -> None:
        """Removes a segment of ours whose pages the index has forgotten; its files are closed when
        nobody reads them any more."""
        with self.locked():
            self._remove(segment.name)

    def trim(self, owned: list[Segment]) -> list[Segment]:
        """Gives back segments, longest untouched first, until the rest is within the budget.

        Returns:
            Those of `owned` that stay.
        """
        kept = sorted(owned, key=lambda segment: self.last_change(segment.name))
        with self.locked():
            self._sweep()
            while self.used_bytes() > self._disk_bytes:
                if self._reclaim(kept[0].header.shape if kept else None):
                    continue
                if not kept:
                    break
                self._remove(kept[0].name)
                kept.pop(0).close()
        return kept

    def drops(self) -> bytes:
        """What DROPS says: another value than before means that somebody freed our records."""
        try:
            fd = self.files.open(_DROPS)
        except FileNotFoundError:
            return b""
        try:
            return self.files.pread(fd, _DROPS_BYTES, 0)
        finally:
            self.files.close(fd)

    def announce_drop(self) -> bytes:
        """Changes DROPS; returns what it says now."""
        try:
            fd = self.files.open(_DROPS)
        except FileNotFoundError:
            with suppress(FileExistsError):
                self.files.close(self.files.open(_DROPS, create=True))
            fd = self.files.open(_DROPS)
        try:
            now = secrets.token_bytes(_DROPS_BYTES)
            self.files.pwrite(fd, now, 0)
            return now
        finally:
            self.files.close(fd)

    def _open_store(self) -> StoreFile:
        if self.files.read_only:
            return self._read_store()
        with self.locked():
            if STORE not in self.files.names():
                self._write_store()
            return self._read_store()

    def _read_store(self) -> StoreFile:
        try:
            fd = self.files.open(STORE)
        except FileNotFoundError as error:
            raise ValueError("[kvstore.open] a read-only root must be a store; got none") from error
        try:
            store = parse_store(self.files.pread(fd, STORE_BYTES + 1, 0))
        finally:
            self.files.close(fd)
        if store is None:
            raise ValueError(
                "[kvstore.open] root's file STORE must be one of this version; got something else "
                "(remove the directory to start anew)"
            )
        return store

    def _write_store(self) -> None:
        with suppress(FileNotFoundError):  # from one who died here
            self.files.unlink(_NEW_STORE)
        store = StoreFile(secrets.token_bytes(ID_BYTES), secrets.token_bytes(SECRET_BYTES))
        fd = self.files.open(_NEW_STORE, create=True)
        try:
            self.files.pwrite(fd, pack_store(store), 0)
            self.files.sync(fd)
        finally:
            self.files.close(fd)
        self.files.rename(_NEW_STORE, STORE)
        self.files.sync_names()

    def _names(self, suffix: str) -> list[str]:
        return [name for name in self.files.names() if name.endswith(suffix)]

    def _has_room(self, size: int) -> bool:
        if self.used_bytes() + size > self._disk_bytes:
            return False
        return self.files.free_bytes() - size >= self._min_free_bytes

    def _sweep(self) -> None:
        """Removes halves of segments; whoever makes one holds the lock, so they are dead."""
        slots = {name.removesuffix(SLOTS) for name in self._names(SLOTS)}
        for name in slots ^ self.segment_names():
            self._remove(name)

    def _reclaim(self, shape: SlotShape | None) -> bool:
        """Removes one segment that nobody owns and that is not a whole one of `shape`."""
        for name in sorted(self.segment_names(), key=self.last_change):
            try:
                segment = Segment.open(self.files, name)
                fd = self.files.open(name + DIRECTORY)
            except FileNotFoundError:
                continue
            try:
                if segment is not None and self._is_ours(segment.header, shape):
                    continue
                if self.files.try_lock(fd):
                    self._remove(name)
                    return True
            finally:
                self.files.close(fd)
                if segment is not None:
                    segment.close()
        return False

    def _is_ours(self, header: SegmentHeader, shape: SlotShape | None) -> bool:
        return header.shape == shape and header.store_id == self.store.store_id

    def _remove(self, name: str) -> None:
        for suffix in (DIRECTORY, SLOTS):  # without a directory, slots are nothing
            with suppress(FileNotFoundError):
                self.files.unlink(name + suffix)
