# SPDX-License-Identifier: Apache-2.0
"""How much was written to a root's drive in the last 24 hours, by all processes, also before a
restart, and how much more may be. It writes no pages.
"""

import struct
import time
from collections.abc import Callable
from contextlib import suppress

from xxhash import xxh3_64_intdigest

from kt_kvcache.disk.root import Root

_NAME = "WRITTEN"
_HOUR_S = 3600
# The hour that runs and the 24 before it: no 24 hours ever have more than the sum of these.
_NUM_HOURS = 25
# Of each hour its number since 1970 and the bytes, at its number modulo _NUM_HOURS; a checksum.
_HOURS = struct.Struct(f"<{2 * _NUM_HOURS}Q")
_SUM = struct.Struct("<Q")


class Wear:
    """Bytes written per hour. What this process wrote is added to the file by ``save``; until then
    a killed process forgets it, and other processes do not know it.
    """

    def __init__(
        self, root: Root, daily_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        """Reads what was written; `clock` gives seconds since 1970."""
        self._root = root
        self._daily_bytes = daily_bytes
        self._clock = clock
        self._saved: dict[int, int] = {}  # by hour, of all processes
        self._own: dict[int, int] = {}  # not saved yet
        with suppress(OSError):
            self._saved = self._read()

    def add(self, num_bytes: int) -> None:
        """Counts bytes that are about to be written."""
        hour = self._hour()
        self._own[hour] = self._own.get(hour, 0) + num_bytes

    def last_day(self) -> int:
        """Bytes written in the last 24 hours, counted by whole hours: up to 25."""
        oldest = self._hour() - _NUM_HOURS
        return sum(
            num_bytes
            for hours in (self._saved, self._own.copy())
            for hour, num_bytes in hours.items()
            if hour > oldest
        )

    def allows(self, num_bytes: int) -> bool:
        """Whether so many more may be written now."""
        return not self._daily_bytes or self.last_day() + num_bytes <= self._daily_bytes

    def save(self) -> None:
        """Adds what was counted to the root's file, and learns what other processes added.

        Raises:
            OSError: it cannot; what was counted is kept for the next time.
        """
        if self._root.files.read_only:
            return
        with self._root.locked():
            hours = self._read()
            if self._own:
                for hour, num_bytes in self._own.items():
                    hours[hour] = hours.get(hour, 0) + num_bytes
                self._write(hours)
        self._saved, self._own = hours, {}

    def _hour(self) -> int:
        return int(self._clock()) // _HOUR_S

    def _read(self) -> dict[int, int]:
        """What the file says; nothing if it is not there or not whole."""
        files = self._root.files
        try:
            fd = files.open(_NAME)
        except FileNotFoundError:
            return {}
        try:
            raw = files.pread(fd, _HOURS.size + _SUM.size, 0)
        finally:
            files.close(fd)
        packed = raw[: _HOURS.size]
        if len(raw) < _HOURS.size + _SUM.size or raw[_HOURS.size :] != _checksum(packed):
            return {}
        fields = _HOURS.unpack(packed)
        return {hour: n for hour, n in zip(fields[::2], fields[1::2], strict=True) if n}

    def _write(self, hours: dict[int, int]) -> None:
        fields = [0] * (2 * _NUM_HOURS)
        for hour in sorted(hours):  # of two at the same place the later one stays
            at = 2 * (hour % _NUM_HOURS)
            fields[at : at + 2] = hour, hours[hour]
        packed = _HOURS.pack(*fields)
        files = self._root.files
        try:
            fd = files.open(_NAME)
        except FileNotFoundError:
            fd = files.open(_NAME, create=True)
        try:
            files.pwrite(fd, packed + _checksum(packed), 0)
        finally:
            files.close(fd)


def _checksum(packed: bytes) -> bytes:
    return _SUM.pack(xxh3_64_intdigest(packed))
