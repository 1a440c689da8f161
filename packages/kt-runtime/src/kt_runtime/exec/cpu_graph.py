# SPDX-License-Identifier: Apache-2.0
"""Decode steps as recorded kt_kernel graphs, one per bucket. The model's own forward is what is
recorded."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kt_runtime.exec.buckets import bucket_for, bucket_sizes
from kt_runtime.protocols import Batch, CausalLM, KVLayer, Ops

_log = logging.getLogger(__name__)


class ReplayableGraph(Protocol):
    """A recorded sequence of ops (`ops.recording.Recording`)."""

    @property
    def eager_ops(self) -> Sequence[str]:
        """Those for which there is no kernel, in order."""
        ...

    def replay(self) -> None:
        """Run the recorded ops."""


# From the live-row buffer, (1,) int32, and the most rows of a graph: makes a graph and the Ops that
# record into it. All that one makes share their buffers.
GraphsOf = Callable[[Tensor, int], Callable[[], tuple[ReplayableGraph, Ops]]]


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: ReplayableGraph
    logits: Tensor  # (bucket, vocab_size), the graph's own buffer


class CpuGraphRunner:
    """Replays decode-shaped batches (a `GraphRunner`). A bucket is recorded when it is first
    needed.

    All buckets share one set of input buffers, and of buffers between ops. Rows beyond the live
    ones are padding: the graph reads the live row count at replay and computes none of them, so
    padding costs no expert's memory traffic.

    Args:
        model, kv: what is recorded.
        graphs_of: makes graphs and the Ops that record into them.
        max_rows: most sequences in a step.
        max_pages: most pages of one sequence.
    """

    def __init__(
        self,
        model: CausalLM,
        kv: Sequence[KVLayer],
        graphs_of: GraphsOf,
        *,
        max_rows: int,
        max_pages: int,
    ) -> None:
        self._model = model
        self._kv = kv
        self._sizes = bucket_sizes(max_rows)
        self._recorded: dict[int, _Recorded] = {}
        self._eager_ops: Mapping[str, int] = {}
        capacity = self._sizes[-1]

        def ints(*dims: int) -> Tensor:
            return torch.zeros(dims, dtype=torch.int32)

        self._num_rows = ints(1)
        self._new_graph = graphs_of(self._num_rows, capacity)
        self._buffers = Batch(
            input_ids=ints(capacity),
            positions=ints(capacity),
            slot_mapping=torch.full((capacity,), -1, dtype=torch.int32),
            block_table=ints(capacity, max_pages),
            # Padding sequences look like one token long, so that no op sees an empty sequence.
            seq_lens=torch.ones(capacity, dtype=torch.int32),
            cu_seqlens_q=torch.arange(capacity + 1, dtype=torch.int32),
            logits_rows=None,
        )

    @property
    def eager_ops(self) -> Mapping[str, int]:
        """Ops of a forward that run between graphs, and how often; of what was recorded so far."""
        return self._eager_ops

    def can_run(self, num_rows: int) -> bool:
        """Whether a bucket holds this many rows."""
        return bucket_for(self._sizes, num_rows) is not None

    def run(self, batch: Batch) -> Tensor:
        """batch with one row per sequence → logits (T, vocab_size) of every row; valid until the
        next run."""
        num_rows = len(batch.input_ids)
        bucket = bucket_for(self._sizes, num_rows)
        if bucket is None:
            raise ValueError(
                f"[cpu_graph.run] a batch must have 1 to {self._sizes[-1]} rows; got {num_rows}"
            )
        self._fill(batch, num_rows)
        recorded = self._recorded.get(bucket)
        if recorded is None:
            recorded = self._recorded[bucket] = self._record(bucket)
        recorded.graph.replay()
        return recorded.logits[:num_rows]

    def _fill(self, batch: Batch, num_rows: int) -> None:
        # Through numpy, whose assignments take a tenth of the time of torch's.
        buffers = self._buffers
        slot_mapping, seq_lens = buffers.slot_mapping.numpy(), buffers.seq_lens.numpy()
        self._num_rows.numpy()[0] = num_rows
        buffers.input_ids.numpy()[:num_rows] = batch.input_ids.numpy()
        buffers.positions.numpy()[:num_rows] = batch.positions.numpy()
        slot_mapping[:num_rows] = batch.slot_mapping.numpy()
        slot_mapping[num_rows:] = -1
        seq_lens[:num_rows] = batch.seq_lens.numpy()
        seq_lens[num_rows:] = 1
        # Entries past a sequence's own pages may be stale: seq_lens keeps them from being read.
        pages = batch.block_table.numpy()
        buffers.block_table.numpy()[:num_rows, : pages.shape[1]] = pages

    def _record(self, bucket: int) -> _Recorded:
        graph, ops = self._new_graph()
        buffers = self._buffers
        inputs = Batch(
            input_ids=buffers.input_ids[:bucket],
            positions=buffers.positions[:bucket],
            slot_mapping=buffers.slot_mapping[:bucket],
            block_table=buffers.block_table[:bucket],
            seq_lens=buffers.seq_lens[:bucket],
            cu_seqlens_q=buffers.cu_seqlens_q[: bucket + 1],
            logits_rows=None,
        )
        recorded = _Recorded(graph, self._model.forward(ops, inputs, self._kv))
        if graph.eager_ops and not self._eager_ops:
            self._eager_ops = Counter(graph.eager_ops)
            _log.warning(
                "no kernel computes %s: a decode step is replayed in %d parts",
                ", ".join(self._eager_ops),
                len(graph.eager_ops) + 1,
            )
        return recorded
