# SPDX-License-Identifier: Apache-2.0
"""What the index of a disk tier hands out: pages found, where pages lie, how many there are. Data
only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kt_kvcache.disk.segment import Segment
from kt_kvcache.page import CachedPage


class DiskHolding:
    """Pages that a lease found on disk and keeps from being evicted; equal only to itself.

    Attributes:
        pages: in the order of the sequence.
        pin: the last of them, pinned, and with it all above.
        tail_tokens: if the last page only begins as the chain goes on, its tokens that do; else 0.
    """

    __slots__ = ("pages", "pin", "tail_tokens")

    def __init__(self, pages: list[CachedPage], pin: CachedPage, tail_tokens: int = 0) -> None:
        """Records what has just been pinned."""
        self.pages = pages
        self.pin = pin
        self.tail_tokens = tail_tokens

    @property
    def num_full_pages(self) -> int:
        """Pages that are the chain's as a whole."""
        return len(self.pages) - (self.tail_tokens > 0)


@dataclass(frozen=True, slots=True)
class Extents:
    """Where pages lie, as a PageMover wants it; `segments` keeps their files open."""

    fds: NDArray[np.int32]
    offsets: NDArray[np.uint64]
    seeds: NDArray[np.uint64]
    sums: NDArray[np.uint64]
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class PageCounts:
    """What ``DiskPages.counts`` says; what it means stands at ``DiskStats``."""

    known: int
    evictable: int
    free: int
    bad: int
    mismatched: int
    over_share: int
    expired: int
    reasked: int
    reask_gap_s: float
