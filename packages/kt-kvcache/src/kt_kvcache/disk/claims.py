# SPDX-License-Identifier: Apache-2.0
"""Which pages are being loaded by whom, so that two loads of one prefix read it once. It reads
nothing and waits for nobody.
"""

from collections.abc import Sequence
from threading import Lock
from typing import Generic, TypeVar

from kt_kvcache.page import CachedPage

LoadT = TypeVar("LoadT")


class Claims(Generic[LoadT]):
    """Pages on their way into memory, each with the load that brings it; thread-safe."""

    def __init__(self) -> None:
        """Starts empty."""
        self._lock = Lock()
        self._loads: dict[CachedPage, LoadT] = {}

    def claim(self, pages: Sequence[CachedPage], load: LoadT) -> LoadT | None:
        """Says that `load` brings `pages`, unless another one is bringing the first; O(pages).

        Returns:
            That other load; None if the pages are this one's until ``release``.
        """
        with self._lock:
            ahead = self._loads.get(pages[0])
            if ahead is None:
                for page in pages:
                    self._loads.setdefault(page, load)
            return ahead

    def release(self, pages: Sequence[CachedPage], load: LoadT) -> None:
        """Says that `load` has ended; O(pages)."""
        with self._lock:
            for page in pages:
                if self._loads.get(page) is load:
                    del self._loads[page]
