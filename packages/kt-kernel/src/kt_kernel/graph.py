# SPDX-License-Identifier: Apache-2.0
"""A recorded sequence of ops that replays as one job of the pool. The ops are those of `Stream`."""

from kt_kernel import _core
from kt_kernel.ops import Ops
from kt_kernel.thread_pool import ThreadPool

__all__ = ("Graph",)


class Graph(Ops):
    """Records ops instead of running them; `replay` runs them all, in order.

    Replay gives the same bits as running the ops on a `Stream`. The graph keeps the arrays and
    weights alive and reads the arrays anew at each replay: change their contents, not the objects.

    Args:
        pool: the threads that compute.
        num_rows: (1,) int32, read at replay: rows at or beyond it are padding, neither computed nor
            written. None: all rows are live. Lets one graph of a capacity serve smaller batches.

    One thread at a time records or replays.
    """

    _core: _core.Graph

    def __init__(self, pool: ThreadPool, num_rows: object | None = None) -> None:
        self._core = _core.Graph(pool._core, num_rows)

    def replay(self) -> None:
        """Run the recorded ops. Releases the GIL.

        Raises:
            ValueError: `[graph.replay] op 17 moe: ...`; the step is spoilt, the graph stays usable.
        """
        self._core.replay()

    def __len__(self) -> int:
        return len(self._core)
