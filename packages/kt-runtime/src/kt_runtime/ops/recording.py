# SPDX-License-Identifier: Apache-2.0
"""What a recorded forward consists of: graphs of kernels, calls between them where there is no
kernel, and the buffers that both write. Records; the ops themselves are kt_ops.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kt_kernel import Graph, ThreadPool


class RowBuffers:
    """Memory for the results of recorded ops: one set for the recordings of all batch sizes, of
    which only one replays at a time.

    The first results of all of them share a buffer, the second ones another, and so on.

    Args:
        capacity: most rows of a recording. Memory is touched only as far as rows are computed.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._buffers: list[Tensor] = []

    def take(self, index: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """(rows, …) for result number `index` of a recording, uninitialised."""
        num_rows, *dims = shape
        if index == len(self._buffers):
            self._buffers.append(torch.empty(self._capacity, *dims, dtype=dtype))
        if index < len(self._buffers) and num_rows <= self._capacity:
            shared = self._buffers[index]
            if shared.dtype == dtype and list(shared.shape[1:]) == dims:
                return shared[:num_rows]
        # A forward that does not do the same for every number of rows.
        return torch.empty(num_rows, *dims, dtype=dtype)


class Recording:
    """A forward as it was recorded, to be replayed. One thread at a time.

    Without calls it is a single graph, and a replay a single call.

    Args:
        pool: the threads that compute.
        num_rows: (1,) int32, how many rows are live, read at each replay; None: all.
        buffers: shared with other recordings; None: its own.

    Attributes:
        graph: what ops are recorded on now.
        eager_ops: names of the ops that run between graphs, in order.
    """

    def __init__(
        self, pool: ThreadPool, num_rows: Tensor | None = None, buffers: RowBuffers | None = None
    ) -> None:
        self._pool = pool
        self._num_rows = num_rows
        self._buffers = buffers
        self._num_results = 0
        self.graph = Graph(pool, num_rows)
        self._segments: list[Callable[[], None]] = [self.graph.replay]
        self.eager_ops: list[str] = []

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A buffer (rows, …) for the next result."""
        if self._buffers is None:
            return torch.empty(*shape, dtype=dtype)
        self._num_results += 1
        return self._buffers.take(self._num_results - 1, shape, dtype)

    def eager(self, name: str, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """Call `function` on the live rows of the inputs at this point of each replay.

        It is called once now, on what the ops recorded before it make of the present inputs, to see
        what it returns.

        Returns:
            (rows, …), written at each replay.

        Raises:
            ValueError: it does not return a row for each row.
        """
        self.graph.replay()
        num_rows, live = len(inputs[0]), self._live(len(inputs[0]))
        result = function(*(each[:live] for each in inputs))
        if len(result) != live:
            raise ValueError(
                f"[{name}] an op must return a row for each of {live} rows; got {len(result)}"
            )
        out = self.empty((num_rows, *result.shape[1:]), result.dtype)

        def call() -> None:
            live = self._live(num_rows)
            out[:live] = function(*(each[:live] for each in inputs))

        call()
        self.graph = Graph(self._pool, self._num_rows)
        self._segments += [call, self.graph.replay]
        self.eager_ops.append(name)
        return out

    def replay(self) -> None:
        """Run all of it, in order."""
        for run in self._segments:
            run()

    def _live(self, num_rows: int) -> int:
        return num_rows if self._num_rows is None else int(self._num_rows[0])
