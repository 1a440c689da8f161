# SPDX-License-Identifier: Apache-2.0
"""Where page bytes lie, and how they are addressed in bulk; it does not know which pages are used.

A page with id p is row p of every layer buffer. Buffers may have rows of different lengths: those
of layers with another kind of attention, say, or scales beside quantised values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kt_kvcache.errors import require_int, require_type
from kt_kvcache.native import HAS_CORE

if HAS_CORE:
    from kt_kvcache import _core

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PageView:
    """Some pages of some buffers: row `page_ids[i]` of each layer is the i-th page.

    Attributes:
        layer_buffers: per layer (num_pages, stride of this layer) uint8, C-contiguous.
        page_ids: rows, in the order of the sequence.
    """

    layer_buffers: tuple[Bytes, ...]
    page_ids: tuple[int, ...]

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one page to the next in each layer: all of them are the page's."""
        return _strides(self.layer_buffers)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers."""
        return sum(self.strides)

    @property
    def num_bytes(self) -> int:
        """Bytes of all these pages in all layers."""
        return self.page_bytes * len(self.page_ids)

    def page(self, layer: int, i: int) -> Bytes:
        """Returns the bytes of the i-th page in `layer`, (stride of the layer,) uint8, no copy.

        Raises:
            ValueError: a layer or page that the view does not have; none is counted from the end.
        """
        layer = require_int("page", "layer", layer, 0, len(self.layer_buffers) - 1)
        i = require_int("page", "i", i, 0, len(self.page_ids) - 1)
        row: Bytes = self.layer_buffers[layer][self.page_ids[i]]
        return row

    def copy_to(self, sink: "PageView") -> None:
        """Copies these pages into those of `sink`, which must match in pages and strides.

        No Python per page. The core copies each row once, without the GIL; numpy, for want of a
        core or where both views lie in one memory, by way of a copy.
        """
        require_type("copy_to", "sink", sink, PageView)
        if not all(buffer.flags.writeable for buffer in sink.layer_buffers):
            raise ValueError("[kvstore.copy_to] sink must be writable; got a read-only view")
        mine, theirs = (len(self.page_ids), self.strides), (len(sink.page_ids), sink.strides)
        if mine != theirs:
            raise ValueError(
                f"[kvstore.copy_to] sink must have (num_pages, strides) = {mine}; got {theirs}"
            )
        pairs = list(zip(self.layer_buffers, sink.layer_buffers, strict=True))
        if HAS_CORE and not any(np.may_share_memory(*pair) for pair in pairs):
            _core.copy_pages(self.layer_buffers, self.page_ids, sink.layer_buffers, sink.page_ids)
            return
        source_ids, sink_ids = list(self.page_ids), list(sink.page_ids)
        for source, target in pairs:
            target[sink_ids] = source[source_ids]


def _strides(rows: Sequence[Bytes]) -> tuple[int, ...]:
    return tuple(row.shape[1] for row in rows)


class Arena:
    """The buffers behind a store's page ids: the caller's (never copied), or allocated here."""

    __slots__ = ("_read_only", "_writable", "num_pages", "strides")

    def __init__(self, layer_buffers: Sequence[NDArray[Any]]) -> None:
        """Wraps the caller's buffers.

        Args:
            layer_buffers: per layer a writable C-contiguous array (num_pages, ...) of any dtype,
                all with the same number of pages.

        Raises:
            ValueError: no buffers, or one that breaks the rule above.
        """
        require_type("arena", "layer_buffers", layer_buffers, Sequence)
        if not layer_buffers:
            raise ValueError("[kvstore.arena] layer_buffers must not be empty; got none")
        for layer, buffer in enumerate(layer_buffers):
            if not isinstance(buffer, np.ndarray) or buffer.dtype.hasobject:
                got = getattr(buffer, "dtype", type(buffer).__name__)
                raise ValueError(
                    f"[kvstore.arena] layer {layer} must be a numpy array of plain bytes; got {got}"
                )
            writable = buffer.flags.c_contiguous and buffer.flags.writeable
            if buffer.ndim < 2 or not buffer.size or not writable:
                raise ValueError(
                    f"[kvstore.arena] layer {layer} must be a writable C-contiguous "
                    f"(num_pages, ...) array; got {buffer.dtype} {buffer.shape}"
                )
        rows = [b.reshape(b.shape[0], -1).view(np.uint8) for b in layer_buffers]
        counts = sorted({len(row) for row in rows})
        if len(counts) > 1:
            raise ValueError(f"[kvstore.arena] layers must have one num_pages; got {counts}")
        self.num_pages = counts[0]
        self.strides = _strides(rows)
        self._writable = tuple(rows)
        self._read_only = tuple(row.view() for row in rows)
        for row in self._read_only:
            row.flags.writeable = False

    @classmethod
    def allocate(cls, num_pages: int, strides: Sequence[int]) -> "Arena":
        """Allocates a zeroed arena of `num_pages` pages with `strides[i]` bytes in layer i."""
        require_int("arena", "num_pages", num_pages, 1)
        require_type("arena", "strides", strides, Sequence)
        for stride in strides:
            require_int("arena", "stride", stride, 1)
        return cls([np.zeros((num_pages, stride), np.uint8) for stride in strides])

    @property
    def num_layers(self) -> int:
        """Number of layer buffers."""
        return len(self._writable)

    def view(self, page_ids: tuple[int, ...], *, writable: bool) -> PageView:
        """Returns a view of these pages; a read-only one refuses writes through numpy."""
        buffers = self._writable if writable else self._read_only
        return PageView(buffers, page_ids)
