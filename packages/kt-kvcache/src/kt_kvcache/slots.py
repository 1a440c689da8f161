# SPDX-License-Identifier: Apache-2.0
"""The free list over page ids 0..num_pages-1; it knows neither hashes nor bytes, nor locks."""

from collections.abc import Iterable

from kt_kvcache.errors import IntegrityError


class Slots:
    """A stack of free page ids with a bit per page against double frees; all calls O(n) in n."""

    __slots__ = ("_free", "_is_free", "num_pages")

    def __init__(self, num_pages: int) -> None:
        """All of `num_pages` slots start free; low ids are taken first."""
        self.num_pages = num_pages
        self._free = list(reversed(range(num_pages)))
        self._is_free = bytearray(b"\x01" * num_pages)

    @property
    def num_free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    def take(self, n: int) -> list[int]:
        """Takes `n` free slots; the caller has checked that there are as many."""
        if n > len(self._free):
            raise IntegrityError(f"[kvstore.slots] {n} slots must be free; got {len(self._free)}")
        taken = [self._free.pop() for _ in range(n)]
        for page_id in taken:
            self._is_free[page_id] = 0
        return taken

    def give(self, page_ids: Iterable[int]) -> None:
        """Gives slots back."""
        for page_id in page_ids:
            if self._is_free[page_id]:
                raise IntegrityError(f"[kvstore.slots] page {page_id} must be in use; got free")
            self._is_free[page_id] = 1
            self._free.append(page_id)

    def free_ids(self) -> set[int]:
        """Returns the ids of all free slots, O(num_pages)."""
        return set(self._free)
