# SPDX-License-Identifier: Apache-2.0
"""How many bytes per second loads have brought lately: what a guess of the next one rests on."""

from threading import Lock

# Before anything was measured: a SATA drive has half, an NVMe drive several times as much.
_START_BYTES_PER_S = 1e9
_DECAY = 0.8  # of what was measured, with each further load: the last five decide


class ReadRate:
    """A mean over the last loads, long ones counting more; thread-safe."""

    def __init__(self) -> None:
        """Starts with nothing measured."""
        self._lock = Lock()
        self._num_bytes = 0.0
        self._seconds = 0.0

    def add(self, num_bytes: int, seconds: float) -> None:
        """Counts a load."""
        with self._lock:
            self._num_bytes = self._num_bytes * _DECAY + num_bytes
            self._seconds = self._seconds * _DECAY + seconds

    @property
    def bytes_per_s(self) -> float:
        """Bytes per second, more than 0."""
        with self._lock:
            measured = self._num_bytes > 0 and self._seconds > 0
            return self._num_bytes / self._seconds if measured else _START_BYTES_PER_S
