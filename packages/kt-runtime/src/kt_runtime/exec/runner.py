# SPDX-License-Identifier: Apache-2.0
"""Runs one step of the model: from a recorded graph where the batch allows, else eagerly. Not
sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kt_runtime.protocols import Batch, CausalLM, GraphRunner, KVLayer, Ops


class Runner:
    """The one place where a model's forward is called.

    Args:
        model, ops: what runs eagerly.
        kv: the page tensors, per layer.
        graphs: runs batches of one row per sequence; None runs everything eagerly.

    Attributes:
        steps: forward passes so far.
        graph_steps: those of them that a graph replayed.
    """

    def __init__(
        self, model: CausalLM, ops: Ops, kv: Sequence[KVLayer], graphs: GraphRunner | None
    ) -> None:
        self._model = model
        self._ops = ops
        self._kv = kv
        self._graphs = graphs
        self.steps = 0
        self.graph_steps = 0

    def run(self, batch: Batch) -> Tensor:
        """→ logits (R, vocab_size) float32 of batch.logits_rows; valid until the next run.

        KV of all rows is written to batch.slot_mapping.
        """
        self.steps += 1
        num_rows, num_seqs = len(batch.input_ids), len(batch.seq_lens)
        graphs = self._graphs
        with torch.inference_mode():
            if graphs is None or num_rows != num_seqs or not graphs.can_run(num_rows):
                return self._model.forward(self._ops, batch, self._kv)
            self.graph_steps += 1
            logits = graphs.run(batch)
            wanted = batch.logits_rows
            if wanted is None or len(wanted) == num_rows:
                return logits
            return logits[wanted.long()]
