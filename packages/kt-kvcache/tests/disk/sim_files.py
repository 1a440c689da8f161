# SPDX-License-Identifier: Apache-2.0
"""A file system in memory that remembers every change, so that it can be what a power cut leaves
of it; and one that fails when told to.
"""

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock

SECTOR = 512


@dataclass(eq=False)
class Inode:
    content: bytearray = field(default_factory=bytearray)
    mtime: int = 1
    locked_by: object = None


@dataclass
class SimDisk:
    """Files and the log of how they came to be: (operation, inode or name, ...)."""

    names: dict[str, Inode] = field(default_factory=dict)
    log: list[tuple] = field(default_factory=list)
    lock: RLock = field(default_factory=RLock)
    clock: int = 1

    def crashed(self, length: int, rng: random.Random, keep: float) -> "SimDisk":
        """What a power cut after `length` changes leaves.

        All that was synced before; of the rest each sector with probability `keep`, and of the
        changes of names as many of the first as chance will have.
        """
        log = self.log[:length]
        synced: dict[Inode, int] = {}
        names_synced = 0
        for i, (op, *rest) in enumerate(log):
            if op == "sync":
                synced[rest[0]] = i
            elif op == "sync_names":
                names_synced = i
        after = [i for i, entry in enumerate(log) if entry[0] in NAMES and i > names_synced]
        end = len(log) if keep == 1 else rng.choice([*after, len(log)])
        new: dict[Inode, Inode] = {}
        left = SimDisk()
        for i, (op, *rest) in enumerate(log):
            if op in NAMES:
                if i < max(end, names_synced):
                    left.rename_all(op, rest, new)
                continue
            if op not in ("write", "allocate"):
                continue
            inode = new.setdefault(rest[0], Inode())
            durable = i < synced.get(rest[0], -1)
            if op == "allocate":
                if durable or rng.random() < keep:
                    _grow(inode, rest[1])
                continue
            offset, data = rest[1:]
            for start, piece in _sectors(offset, data):
                if durable or rng.random() < keep:
                    _grow(inode, start + len(piece))
                    inode.content[start : start + len(piece)] = piece
        return left

    def rename_all(self, op: str, rest: list, new: dict[Inode, Inode]) -> None:
        if op == "create":
            self.names[rest[0]] = new.setdefault(rest[1], Inode())
        elif op == "rename":
            self.names[rest[1]] = self.names.pop(rest[0])
        else:
            self.names.pop(rest[0], None)


NAMES = ("create", "rename", "unlink")


def _grow(inode: Inode, size: int) -> None:
    inode.content.extend(bytes(max(0, size - len(inode.content))))


def _sectors(offset: int, data: bytes) -> list[tuple[int, bytes]]:
    pieces, start = [], 0
    while start < len(data):
        end = start + SECTOR - (offset + start) % SECTOR
        pieces.append((offset + start, data[start:end]))
        start = end
    return pieces


class SimFiles:
    """One process's view of a SimDisk; ``Files``.

    Attributes:
        fault: called with (operation, name) before each; raises OSError to have it fail, returns
            a number of bytes to have a call move only these.
    """

    def __init__(self, disk: SimDisk, *, read_only: bool = False, free_bytes: int = 1 << 40):
        self.disk, self.read_only, self.space = disk, read_only, free_bytes
        self.fault: Callable[[str, str], int | None] = lambda op, name: None
        self.open_files: dict[int, tuple[str, Inode]] = {}
        self._next_fd = 100

    def names(self):
        self.fault("names", "")
        with self.disk.lock:
            return list(self.disk.names)

    def open(self, name, *, create=False, direct=False):
        self.fault("open", name)
        with self.disk.lock:
            if create:
                self._writable()
                if name in self.disk.names:
                    raise FileExistsError(errno.EEXIST, "exists", name)
                self.disk.names[name] = Inode()
                self.disk.log.append(("create", name, self.disk.names[name]))
            if name not in self.disk.names:
                raise FileNotFoundError(errno.ENOENT, "no such file", name)
            self._next_fd += 1
            self.open_files[self._next_fd] = name, self.disk.names[name]
            return self._next_fd

    def close(self, fd):
        with self.disk.lock:
            _, inode = self.open_files.pop(fd)
            if inode.locked_by == (self, fd):
                inode.locked_by = None

    def status(self, file):
        with self.disk.lock:
            if isinstance(file, str) and file not in self.disk.names:
                raise FileNotFoundError(errno.ENOENT, "no such file", file)
            inode = self.disk.names[file] if isinstance(file, str) else self._file(file)[1]
            return len(inode.content), inode.mtime

    def pread(self, fd, size, offset):
        name, inode = self._file(fd)
        self.fault("pread", name)
        with self.disk.lock:
            return bytes(inode.content[offset : offset + size])

    def pwrite(self, fd, data, offset):
        name, inode = self._file(fd)
        self._writable()
        self.fault("pwrite", name)
        self._write(inode, bytes(data), offset)

    def preadv(self, fd, buffers, offset):
        name, inode = self._file(fd)
        most = self.fault("preadv", name)
        with self.disk.lock:
            data = bytes(inode.content[offset : offset + len(buffers[0])])[:most]
        buffers[0][: len(data)] = data
        return len(data)

    def pwritev(self, fd, buffers, offset):
        name, inode = self._file(fd)
        self._writable()
        most = self.fault("pwritev", name)
        data = bytes(buffers[0])[:most]
        self._write(inode, data, offset)
        return len(data)

    def allocate(self, fd, size):
        name, inode = self._file(fd)
        self._writable()
        self.fault("allocate", name)
        with self.disk.lock:
            _grow(inode, size)
            self.disk.log.append(("allocate", inode, size))

    def sync(self, fd):
        name, inode = self._file(fd)
        self.fault("sync", name)
        with self.disk.lock:
            self.disk.log.append(("sync", inode))

    def sync_names(self):
        self.fault("sync_names", "")
        with self.disk.lock:
            self.disk.log.append(("sync_names",))

    def rename(self, old, new):
        self.fault("rename", old)
        with self.disk.lock:
            self.disk.names[new] = self.disk.names.pop(old)
            self.disk.log.append(("rename", old, new))

    def unlink(self, name):
        self._writable()
        self.fault("unlink", name)
        with self.disk.lock:
            if name not in self.disk.names:
                raise FileNotFoundError(errno.ENOENT, "no such file", name)
            del self.disk.names[name]
            self.disk.log.append(("unlink", name))

    def try_lock(self, fd):
        with self.disk.lock:
            inode = self._file(fd)[1]
            if inode.locked_by in (None, (self, fd)):
                inode.locked_by = (self, fd)
                return True
            return False

    def free_bytes(self):
        with self.disk.lock:
            return self.space - sum(len(inode.content) for inode in self.disk.names.values())

    def close_all(self):
        for fd in list(self.open_files):
            self.close(fd)

    def _file(self, fd):
        if fd not in self.open_files:
            raise OSError(errno.EBADF, "not open")
        return self.open_files[fd]

    def _writable(self):
        if self.read_only:
            raise OSError(errno.EROFS, "read-only")

    def _write(self, inode, data, offset):
        with self.disk.lock:
            _grow(inode, offset + len(data))
            inode.content[offset : offset + len(data)] = data
            self.disk.clock += 1
            inode.mtime = self.disk.clock
            self.disk.log.append(("write", inode, offset, data))
