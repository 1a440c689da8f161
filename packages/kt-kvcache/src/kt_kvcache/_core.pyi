# SPDX-License-Identifier: Apache-2.0
"""Types of the compiled core (csrc/python/bind_*.cpp)."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kt_kvcache.page import CachedPage

class RunHasher:
    def __init__(self, first_block: bytes, page_tokens: int, path: str | None = None) -> None: ...
    def append(self, tokens: bytes | bytearray | memoryview, hashes: bytearray) -> None: ...

def encode_tokens(tokens: list[int]) -> bytearray | None: ...
def hash_paths() -> list[str]: ...
def copy_pages(
    from_layers: Sequence[NDArray[np.uint8]],
    from_ids: Sequence[int],
    to_layers: Sequence[NDArray[np.uint8]],
    to_ids: Sequence[int],
) -> None: ...

class PageMover:
    def __init__(self, num_threads: int, inflight_bytes: int, with_ring: bool) -> None: ...
    def move(
        self,
        is_read: bool,
        layer_buffers: Sequence[NDArray[np.uint8]],
        page_ids: Sequence[int],
        fds: NDArray[np.int32],
        offsets: NDArray[np.uint64],
        seeds: NDArray[np.uint64],
        sums: NDArray[np.uint64],
        extent_bytes: int,
        statuses: NDArray[np.int32],
        ended: tuple[Future[Any], Any],
    ) -> bool: ...
    def wait(self) -> list[tuple[Future[Any], Any]]: ...
    def close(self) -> None: ...

class CachedPages:
    def __init__(self, type: type[CachedPage]) -> None: ...
    def match(
        self,
        root: CachedPage,
        tokens: bytearray,
        page_tokens: int,
        extras: dict[int, bytes],
        num_pages: int,
    ) -> tuple[CachedPage, list[int]]: ...
    def pin(self, page: CachedPage) -> int: ...
    def unpin(self, page: CachedPage, clock: int) -> int: ...
