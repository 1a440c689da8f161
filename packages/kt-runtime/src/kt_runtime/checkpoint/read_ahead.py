# SPDX-License-Identifier: Apache-2.0
"""Has a checkpoint's files read into the page cache before the packers ask for them. Holds no bytes
itself; imports no torch.

A packer that walks through a mapped file waits for the disk at every fault, with one short read in
flight. Asked early, the disk reads while Python still imports, and keeps its queue full afterwards.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

# A request of this size keeps a disk busy; the window is followed in these steps.
_STEP = 8 << 20
# What may be read but not packed yet: what a fast disk delivers while torch is imported, and on a
# small machine no more than this part of memory, lest the file evict itself.
_WINDOW = 2 << 30
_PART_OF_MEMORY = 8

# Embedding tables, and the output matrix beside which they are only looked up: a row here and there
# is read when it is asked for. Without the matrix the table is packed in its place.
_LOOKED_UP = {
    "token_embd.weight": "output.weight",
    "model.embed_tokens.weight": "lm_head.weight",
}

_LAYER = re.compile(r"(?:layers|blk)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies."""

    name: str
    file: Path
    begin: int
    nbytes: int


class ReadAhead:
    """Reads tensors in the order in which models pack them: layer by layer, then what is around.

    A thread of its own asks the system to; what the system declines is read when it is needed, as
    without. Thread-safe.

    Args:
        tensors: what will be packed, asked for at the start.
        window: most bytes read and not packed; None chooses by the machine's memory.

    Attributes:
        tensors: as given.
    """

    def __init__(self, tensors: Callable[[], Iterable[Stored]], window: int | None = None) -> None:
        self.tensors = tensors
        self._window = _default_window() if window is None else window
        self._packed = 0
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._news = threading.Condition()

    def start(self) -> None:
        """Begins to read. Idempotent; not after `close`."""
        with self._news:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kt-read-ahead", daemon=True)
                self._thread.start()

    def packed(self, nbytes: int) -> None:
        """So many bytes of all were packed; the window moves on."""
        with self._news:
            self._packed = nbytes
            self._news.notify()

    def close(self) -> None:
        """Ends the thread. Idempotent."""
        with self._news:
            self._stopped = True
            self._news.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        asked = 0
        try:
            for file, begin, end in _merged(sorted(read_whole(self.tensors()), key=_order)):
                with file.open("rb", buffering=0) as opened:
                    for at in range(begin, end, _STEP):
                        size = min(_STEP, end - at)
                        if not self._has_room(asked + size):
                            return
                        os.posix_fadvise(opened.fileno(), at, size, os.POSIX_FADV_WILLNEED)
                        asked += size
        except OSError:
            return  # advice was all it was

    def _has_room(self, end: int) -> bool:
        """Waits until the window holds all up to the end; False when stopped."""
        with self._news:
            self._news.wait_for(lambda: self._stopped or end <= self._packed + self._window)
            return not self._stopped


def read_whole(tensors: Iterable[Stored]) -> list[Stored]:
    """Those of a model that loading reads: all but a table that is only looked up."""
    by_name = {tensor.name: tensor for tensor in tensors}
    return [t for name, t in by_name.items() if _LOOKED_UP.get(name) not in by_name]


def _order(tensor: Stored) -> tuple[float, str, int]:
    layer = _LAYER.search(tensor.name)
    number = float("inf") if layer is None else int(layer[1])
    return number, str(tensor.file), tensor.begin


def _merged(tensors: Iterable[Stored]) -> list[tuple[Path, int, int]]:
    """(file, begin, end) of neighbours as one. Small gaps, which align tensors, are read too."""
    ranges: list[tuple[Path, int, int]] = []
    for tensor in tensors:
        file, begin, end = tensor.file, tensor.begin, tensor.begin + tensor.nbytes
        if ranges and ranges[-1][0] == file and 0 <= begin - ranges[-1][2] < _STEP:
            begin = ranges.pop()[1]
        ranges.append((file, begin, end))
    return ranges


def _default_window() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(_STEP, min(_WINDOW, memory // _PART_OF_MEMORY))
