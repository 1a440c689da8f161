# SPDX-License-Identifier: Apache-2.0
"""A PageAllocator that only counts, and hands each page id to one table at a time; loads end when a
test says so. Not a test."""

from __future__ import annotations

from dataclasses import dataclass, field

PAGE_SIZE = 4


def pages_of(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_SIZE)


@dataclass
class CountedPages:
    """Attributes: cached_tokens: found of every prompt; asked: the tokens of each `allocate`;
    error: what the next request for pages raises, once; loads: whether `allocate` starts one."""

    num_pages: int
    cached_tokens: int = 0
    free: set[int] = field(default_factory=set)
    asked: list[tuple[int, ...]] = field(default_factory=list)
    error: Exception | None = None
    loads: bool = False
    num_loads_ended: int = 0

    def __post_init__(self) -> None:
        self.free = set(range(self.num_pages))

    def take(self, n: int) -> list[int] | None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return [self.free.pop() for _ in range(n)] if n <= len(self.free) else None

    def allocate(self, token_ids, num_tokens, tenant, reuse):
        self.asked.append(tuple(token_ids))
        page_ids = self.take(pages_of(num_tokens))
        if page_ids is None:
            return None
        cached = min(self.cached_tokens, (len(token_ids) - 1) // PAGE_SIZE * PAGE_SIZE)
        return CountedTable(self, page_ids, cached, self.loads)


class CountedTable:
    """Attributes: fits: what `settle` says, or raises."""

    def __init__(
        self, pages: CountedPages, page_ids: list[int], cached: int, is_loading: bool
    ) -> None:
        self._pages = pages
        self.page_ids = page_ids
        self.num_cached_tokens = 0 if is_loading else cached
        self.is_loading = is_loading
        self.has_loaded = False
        self.fits: bool | Exception = True
        self.released = False

    def end_load(self, cached: int, fits: bool | Exception = True) -> None:
        self._cached, self.fits, self.has_loaded = cached, fits, True
        self._pages.num_loads_ended += 1

    def settle(self):
        assert self.is_loading
        assert self.has_loaded
        self.is_loading = False
        if isinstance(self.fits, Exception):
            raise self.fits
        self.num_cached_tokens = self._cached
        return self.fits

    def grow(self, num_tokens):
        assert not self.released
        assert not self.is_loading
        missing = pages_of(num_tokens) - len(self.page_ids)
        page_ids = self._pages.take(missing) if missing > 0 else []
        self.page_ids += page_ids or []
        return page_ids is not None

    def commit(self, token_ids, num_computed_tokens):
        assert not self.released

    def release(self):
        assert not self.released
        self.released = True
        assert not self._pages.free & set(self.page_ids)
        self._pages.free |= set(self.page_ids)
