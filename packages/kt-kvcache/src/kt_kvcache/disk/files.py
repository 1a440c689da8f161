# SPDX-License-Identifier: Apache-2.0
"""The file operations of one root directory, and nothing else: what they mean is decided above.

``Files`` is the seam at which tests put a file system that records, fails and forgets.
"""

import errno
import fcntl
import mmap
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_ALIGN = 4096
_DIRECTORY_MODE, _FILE_MODE = 0o700, 0o600
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
# O_NONBLOCK: opening a FIFO that somebody put here must not wait. Regular files ignore it.
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Files(Protocol):
    """Files by name in one directory; every call raises OSError as the system does."""

    read_only: bool

    def names(self) -> list[str]:
        """Names of all entries."""

    def open(self, name: str, *, create: bool = False, direct: bool = False) -> int:
        """Opens a regular file, for writing too unless read_only; create: it must be new.
        direct: past the page cache, where the file system can."""

    def close(self, fd: int) -> None:
        """Closes a file; its lock goes with it."""

    def status(self, file: int | str) -> tuple[int, int]:
        """Size in bytes and time of the last change in ns, of an open file or by name."""

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Reads `size` bytes, fewer only at the end of the file."""

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        """Writes all of `data`."""

    def preadv(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        """As ``os.preadv``."""

    def pwritev(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        """As ``os.pwritev``."""

    def allocate(self, fd: int, size: int) -> None:
        """Takes the space of `size` bytes, zeros, so that later writes cannot lack it."""

    def sync(self, fd: int) -> None:
        """Returns once what was written to the file survives a power cut; OSError if that cannot
        be, because somebody deleted the file."""

    def sync_names(self) -> None:
        """Returns once what was created, renamed and unlinked survives a power cut."""

    def rename(self, old: str, new: str) -> None:
        """Puts a file in the place of another, at once."""

    def unlink(self, name: str) -> None:
        """Removes a name; open files live on."""

    def try_lock(self, fd: int) -> bool:
        """Takes the file's lock, held until it is closed or the process dies; False if held."""

    def free_bytes(self) -> int:
        """Bytes that the file system has left for us."""

    def close_all(self) -> None:
        """Gives up the directory itself; idempotent."""


class OsFiles:
    """The files of a real directory."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Opens `root`, made (0700) where it is missing.

        Raises:
            ValueError: it is a symlink or no directory, belongs to somebody else, or others than
                its owner may write it.
            OSError: it cannot be opened.
        """
        self._root_fd = -1
        path = Path(root)
        with suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=_DIRECTORY_MODE)
        try:
            self._root_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise ValueError(
                    f"[kvstore.open] root must be a directory, not a symlink; got {str(path)!r}"
                ) from error
            raise
        status = os.fstat(self._root_fd)
        if status.st_mode & _WRITABLE_BY_OTHERS or status.st_uid not in (os.geteuid(), 0):
            os.close(self._root_fd)
            raise ValueError(
                "[kvstore.open] root must belong to its user and be writable by nobody else; got "
                f"{str(path)!r} of user {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}"
            )
        self.read_only = not os.access(".", os.W_OK, dir_fd=self._root_fd)
        self.direct = self.read_only or self._takes_direct()

    def names(self) -> list[str]:
        """See ``Files``."""
        return os.listdir(self._root_fd)  # noqa: PTH208 (pathlib takes no descriptor)

    def open(self, name: str, *, create: bool = False, direct: bool = False) -> int:
        """See ``Files``."""
        flags = _FLAGS | (os.O_RDONLY if self.read_only else os.O_RDWR)
        flags |= (os.O_CREAT | os.O_EXCL) if create else 0
        if direct and self.direct:
            try:
                fd = os.open(name, flags | os.O_DIRECT, _FILE_MODE, dir_fd=self._root_fd)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.direct = False
                fd = os.open(name, flags & ~os.O_EXCL, _FILE_MODE, dir_fd=self._root_fd)
        else:
            fd = os.open(name, flags, _FILE_MODE, dir_fd=self._root_fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", name)
        return fd

    def close(self, fd: int) -> None:
        """See ``Files``."""
        os.close(fd)

    def status(self, file: int | str) -> tuple[int, int]:
        """See ``Files``."""
        if isinstance(file, int):
            status = os.fstat(file)
        else:
            status = os.stat(file, dir_fd=self._root_fd, follow_symlinks=False)
        return status.st_size, status.st_mtime_ns

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """See ``Files``."""
        parts = []
        while size:
            part = os.pread(fd, size, offset)
            if not part:
                break
            parts.append(part)
            size, offset = size - len(part), offset + len(part)
        return b"".join(parts)

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        """See ``Files``."""
        left = memoryview(data)
        while left:
            written = os.pwrite(fd, left, offset)
            left, offset = left[written:], offset + written

    def preadv(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        """See ``Files``."""
        return os.preadv(fd, buffers, offset)

    def pwritev(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        """See ``Files``."""
        return os.pwritev(fd, buffers, offset)

    def allocate(self, fd: int, size: int) -> None:
        """See ``Files``."""
        os.posix_fallocate(fd, 0, size)

    def sync(self, fd: int) -> None:
        """See ``Files``."""
        os.fdatasync(fd)
        if os.fstat(fd).st_nlink == 0:
            raise OSError(errno.ENOENT, "the file was deleted")

    def sync_names(self) -> None:
        """See ``Files``."""
        os.fsync(self._root_fd)

    def rename(self, old: str, new: str) -> None:
        """See ``Files``."""
        os.rename(old, new, src_dir_fd=self._root_fd, dst_dir_fd=self._root_fd)

    def unlink(self, name: str) -> None:
        """See ``Files``."""
        os.unlink(name, dir_fd=self._root_fd)

    def try_lock(self, fd: int) -> bool:
        """See ``Files``."""
        # struct flock over the whole file. Of the open file, not of the process: two stores of
        # one process exclude each other, and closing another descriptor does not release it.
        whole = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, whole)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def free_bytes(self) -> int:
        """See ``Files``."""
        status = os.fstatvfs(self._root_fd)
        return status.f_bavail * status.f_frsize

    def close_all(self) -> None:
        """See ``Files``."""
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def _takes_direct(self) -> bool:
        """Tries a write and a read past the page cache; some file systems open and then refuse."""
        name = f"probe-{os.getpid()}-{id(self)}"
        flags = _FLAGS | os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT
        try:
            fd = os.open(name, flags, _FILE_MODE, dir_fd=self._root_fd)
        except OSError:
            with suppress(OSError):  # an EINVAL may come after the file was made
                self.unlink(name)
            return False
        try:
            self.unlink(name)
            page = mmap.mmap(-1, _ALIGN)
            return os.pwritev(fd, [page], 0) == os.preadv(fd, [page], 0) == _ALIGN
        except OSError:
            return False
        finally:
            os.close(fd)
