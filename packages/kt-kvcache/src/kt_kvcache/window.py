# SPDX-License-Identifier: Apache-2.0
"""What sliding-window groups need of a prefix, and what of a page can be left on disk without them.
It moves nothing but the bytes of pages that are made whole.

Pages that lie wholly before the last tokens that a window reaches back to are brought from disk as
heads: with the bytes of the groups without a window alone. Where a prefix may end is decided by
``index.usable`` and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kt_kvcache.arena import Arena, PageView
from kt_kvcache.identity import Geometry, WindowGroup
from kt_kvcache.page import CachedPage


@dataclass(frozen=True, slots=True)
class Window:
    """How a space's pages are divided.

    Attributes:
        num_pages: the last pages of a prefix, that must be whole.
        head_layers: buffers of the groups without a window; they come first.
        head_bytes: bytes of a page in these.
    """

    num_pages: int
    head_layers: int
    head_bytes: int

    def num_bytes(self, num_pages: int, slot_bytes: int) -> int:
        """Bytes to read for the last `num_pages` pages of a prefix, whole ones of `slot_bytes`."""
        num_heads = max(0, num_pages - self.num_pages)
        return num_heads * self.head_bytes + (num_pages - num_heads) * slot_bytes


def window_of(geometry: Geometry, extent_bytes: int) -> Window | None:
    """Says what can be left on disk; None: nothing.

    That is so without window groups, with nothing else, and where the bound between the groups
    is not one between checksums, of `extent_bytes` each: a part of one cannot be verified.
    """
    windows = [group.window for group in geometry.groups if isinstance(group, WindowGroup)]
    heads = [group for group in geometry.groups if not isinstance(group, WindowGroup)]
    head_bytes = sum(group.num_layers * group.bytes_per_page for group in heads)
    if not windows or not heads or head_bytes % extent_bytes:
        return None
    # As many pages as these tokens have, and one more: the last may be a tail, used in part or not.
    num_pages = -(-max(windows) // geometry.page_tokens) + 1
    return Window(num_pages, sum(group.num_layers for group in heads), head_bytes)


def copy_rest(arena: Arena, window: Window, copies: Sequence[tuple[CachedPage, int]]) -> None:
    """Copies what heads lack from whole pages of the same tokens, (head, page id of the other)."""
    if not copies:
        return
    buffers = arena.view((), writable=True).layer_buffers[window.head_layers :]
    source = PageView(buffers, tuple(page_id for _, page_id in copies))
    source.copy_to(PageView(buffers, tuple(page.page_id for page, _ in copies)))
