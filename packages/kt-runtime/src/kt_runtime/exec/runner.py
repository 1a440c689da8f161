# SPDX-License-Identifier: Apache-2.0
"""Runs one step of the model: from a recorded graph where the batch allows, else eagerly. Not
sampling."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kt_runtime.exec.numerics import NumericsCheck
from kt_runtime.protocols import Batch, CausalLM, GraphRunner, KVLayer, Ops


class Runner:
    """The one place where a model's forward is called.

    Args:
        model, ops: what runs eagerly.
        kv: the page tensors, per layer.
        graphs: runs batches of one row per sequence; None runs everything eagerly.
        check: runs all batches instead, and finds where they break; None looks at nothing.

    Attributes:
        steps: forward passes so far.
        graph_steps: those of them that a graph replayed.
        seconds: spent in them.
    """

    def __init__(
        self,
        model: CausalLM,
        ops: Ops,
        kv: Sequence[KVLayer],
        graphs: GraphRunner | None,
        check: NumericsCheck | None = None,
    ) -> None:
        self._model = model
        self._ops = ops
        self._kv = kv
        self._graphs = graphs
        self._check = check
        self.steps = 0
        self.graph_steps = 0
        self.seconds = 0.0

    @property
    def eager_ops(self) -> Mapping[str, int]:
        """Ops that run between graphs, and how often in a forward."""
        return {} if self._graphs is None else self._graphs.eager_ops

    def run(self, batch: Batch) -> Tensor:
        """→ logits (R, vocab_size) float32 of batch.logits_rows; valid until the next run.

        KV of all rows is written to batch.slot_mapping.
        """
        started = time.perf_counter()
        self.steps += 1
        graphs = self._graphs_for(batch)
        self.graph_steps += graphs is not None
        try:
            return self._forward(batch, graphs)
        finally:
            self.seconds += time.perf_counter() - started

    def rehearse(self, batch: Batch) -> None:
        """Run it for the time that it takes, counted nowhere."""
        self._forward(batch, self._graphs_for(batch))

    def _graphs_for(self, batch: Batch) -> GraphRunner | None:
        """Those that can run it."""
        graphs, num_rows = self._graphs, len(batch.input_ids)
        if graphs is None or self._check is not None or num_rows != len(batch.seq_lens):
            return None
        return graphs if graphs.can_run(num_rows) else None

    def _forward(self, batch: Batch, graphs: GraphRunner | None) -> Tensor:
        with torch.inference_mode():
            if self._check is not None:
                return self._check.forward(self._model, batch, self._kv)
            if graphs is None:
                return self._model.forward(self._ops, batch, self._kv)
            logits = graphs.run(batch)
            wanted = batch.logits_rows
            if wanted is None or len(wanted) == len(logits):
                return logits
            return logits[wanted.long()]

    def fault(self, start: int, end: int) -> str | None:
        """What first broke rows start … end - 1 of the latest batch; None if nothing did, or nobody
        looked."""
        finding = None if self._check is None else self._check.first(start, end)
        if finding is None:
            return None
        return (
            f"[numerics] the first value that is not finite came from {finding}, step {self.steps}"
        )
