# SPDX-License-Identifier: Apache-2.0
"""Where page bytes lie, and how they are addressed in bulk; it does not know which pages are used.

A page with id p is row p of every layer buffer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kt_kvcache.errors import require_int

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PageView:
    """Some pages of some buffers: row `page_ids[i]` of each layer is the i-th page.

    Attributes:
        layer_buffers: per layer (num_pages, page_stride_bytes) uint8, C-contiguous.
        page_stride_bytes: bytes from one page to the next, the same in all layers.
        page_ids: rows, in the order of the sequence.
    """

    layer_buffers: tuple[Bytes, ...]
    page_stride_bytes: int
    page_ids: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all these pages in all layers."""
        return len(self.layer_buffers) * self.page_stride_bytes * len(self.page_ids)

    def page(self, layer: int, i: int) -> Bytes:
        """Returns the bytes of the i-th page in `layer`, (page_stride_bytes,) uint8, no copy."""
        row: Bytes = self.layer_buffers[layer][self.page_ids[i]]
        return row

    def copy_to(self, sink: "PageView") -> None:
        """Copies these pages into those of `sink`, which must match in layers, pages and stride.

        One gather and scatter per layer, no Python per page.
        """
        mine = (len(self.layer_buffers), len(self.page_ids), self.page_stride_bytes)
        theirs = (len(sink.layer_buffers), len(sink.page_ids), sink.page_stride_bytes)
        if mine != theirs:
            raise ValueError(
                "[kvstore.copy_to] sink must have (num_layers, num_pages, page_stride_bytes) = "
                f"{mine}; got {theirs}"
            )
        source_ids, sink_ids = list(self.page_ids), list(sink.page_ids)
        for source, target in zip(self.layer_buffers, sink.layer_buffers, strict=True):
            target[sink_ids] = source[source_ids]


class Arena:
    """The buffers behind a store's page ids: the caller's (never copied), or allocated here."""

    __slots__ = ("_read_only", "_writable", "num_pages", "page_stride_bytes")

    def __init__(self, layer_buffers: Sequence[NDArray[Any]]) -> None:
        """Wraps the caller's buffers.

        Args:
            layer_buffers: per layer a writable C-contiguous array (num_pages, ...) of any dtype,
                all with the same number of pages and bytes per page.

        Raises:
            ValueError: no buffers, or one that breaks the rule above.
        """
        if not layer_buffers:
            raise ValueError("[kvstore.arena] layer_buffers must not be empty; got none")
        for layer, buffer in enumerate(layer_buffers):
            writable = buffer.flags.c_contiguous and buffer.flags.writeable
            if buffer.ndim < 2 or not buffer.size or not writable:
                raise ValueError(
                    f"[kvstore.arena] layer {layer} must be a writable C-contiguous "
                    f"(num_pages, ...) array; got {buffer.dtype} {buffer.shape}"
                )
        rows = [b.reshape(b.shape[0], -1).view(np.uint8) for b in layer_buffers]
        shapes = sorted({row.shape for row in rows})
        if len(shapes) > 1:
            raise ValueError(
                f"[kvstore.arena] layers must have one (num_pages, page_stride_bytes); got {shapes}"
            )
        self.num_pages, self.page_stride_bytes = shapes[0]
        self._writable = tuple(rows)
        self._read_only = tuple(row.view() for row in rows)
        for row in self._read_only:
            row.flags.writeable = False

    @classmethod
    def allocate(cls, num_pages: int, num_layers: int, page_stride_bytes: int) -> "Arena":
        """Allocates a zeroed arena of num_layers x num_pages x page_stride_bytes bytes."""
        require_int("arena", "num_pages", num_pages, 1)
        require_int("arena", "num_layers", num_layers, 1)
        require_int("arena", "page_stride_bytes", page_stride_bytes, 1)
        shape = (num_pages, page_stride_bytes)
        return cls([np.zeros(shape, np.uint8) for _ in range(num_layers)])

    @property
    def num_layers(self) -> int:
        """Number of layer buffers."""
        return len(self._writable)

    def view(self, page_ids: tuple[int, ...], *, writable: bool) -> PageView:
        """Returns a view of these pages; a read-only one refuses writes through numpy."""
        buffers = self._writable if writable else self._read_only
        return PageView(buffers, self.page_stride_bytes, page_ids)
