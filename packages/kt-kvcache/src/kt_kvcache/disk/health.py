# SPDX-License-Identifier: Apache-2.0
"""Whether the drive may be written now: after a failure it is left alone for a while. Reads nothing
and writes nothing.
"""

import errno
import time

from kt_kvcache.disk.counters import DiskCounters

# After a failure the drive is left alone, twice as long each time.
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0


class Health:
    """What became of calls to the drive; told by one thread, asked by any.

    Attributes:
        retry_at: when writing is tried again, in seconds of time.monotonic.
    """

    def __init__(self, counters: DiskCounters) -> None:
        """Starts well."""
        self._counters = counters
        self._degraded_s = 0.0
        self._retry_s = _FIRST_RETRY_S
        self.retry_at = 0.0

    @property
    def degraded(self) -> bool:
        """Whether writing has failed and is not tried before a while."""
        return time.monotonic() < self.retry_at

    @property
    def degraded_ms(self) -> int:
        """For how long that was so, in all."""
        return int(1000 * (self._degraded_s - max(0.0, self.retry_at - time.monotonic())))

    def failed(self, error: OSError) -> None:
        """Leaves the drive alone for a while; reading goes on."""
        self.count(error)
        now = time.monotonic()
        self._degraded_s += now + self._retry_s - max(now, self.retry_at)
        self.retry_at = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    def worked(self) -> None:
        """Pages were written: the next failure is the first again."""
        self._retry_s = _FIRST_RETRY_S

    def count(self, error: OSError) -> None:
        """Counts a failed call after which writing goes on."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._counters.no_space += 1
        else:
            self._counters.io_errors += 1
