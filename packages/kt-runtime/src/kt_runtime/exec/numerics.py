# SPDX-License-Identifier: Apache-2.0
"""Finds where NaN or infinity first appears in a forward, by looking at every op's output. For
debugging (`debug_numerics`): slow, off by default, and nothing of it runs then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from kt_runtime.protocols import Batch, CausalLM, KVLayer, Ops


class Finding(NamedTuple):
    """The first op whose output for a row was not finite.

    Attributes:
        order: how many ops of the forward came before it.
        layer: which layer called it; None before the first and after the last.
        op: its name in `protocols.Ops`.
    """

    order: int
    layer: int | None
    op: str

    def __str__(self) -> str:
        where = "outside the layers" if self.layer is None else f"in layer {self.layer}"
        return f"{self.op} {where}"


class NumericsCheck:
    """Runs forwards eagerly on given Ops and keeps the findings of the latest."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        self._findings: dict[int, Finding] = {}

    def forward(self, model: CausalLM, batch: Batch, kv: Sequence[KVLayer]) -> Tensor:
        """As `model.forward`."""
        watched = _WatchedOps(self._ops, len(batch.input_ids))
        self._findings = watched.findings
        layers = _LayerByLayer(kv, watched)
        return model.forward(cast("Ops", watched), batch, cast("Sequence[KVLayer]", layers))

    def first(self, start: int, end: int) -> Finding | None:
        """The earliest finding among rows start … end - 1 of the latest forward."""
        found = [self._findings[row] for row in range(start, end) if row in self._findings]
        return min(found, default=None)


class _WatchedOps:
    """Any Ops; looks at what they return. Compute ops only: nothing is packed in a forward."""

    def __init__(self, ops: Ops, num_rows: int) -> None:
        self._ops = ops
        self._rows = torch.arange(num_rows)  # which batch row each row of an output is
        self._num_ops = 0
        self.layer: int | None = None
        self.findings: dict[int, Finding] = {}

    def __getattr__(self, name: str) -> Any:
        op = getattr(self._ops, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = op(*args, **kwargs)
            if name == "take_rows":
                self._rows = self._rows[args[1].long()]
            # rope_write_kv returns nothing: it rotates its first argument in place.
            outputs = args[:1] if result is None else result
            for output in outputs if isinstance(outputs, tuple) else (outputs,):
                self._look(args[0] if name == "eager" else name, output)
            self._num_ops += 1
            return result

        return watched

    def _look(self, name: str, output: Tensor) -> None:
        if not output.is_floating_point() or len(output) != len(self._rows):
            return
        broken = ~torch.isfinite(output.flatten(1)).all(dim=1)
        for row in self._rows[broken].tolist():
            self.findings.setdefault(row, Finding(self._num_ops, self.layer, name))


class _LayerByLayer:
    """The layers' pages. A model takes one layer's, runs that layer, and takes the next: so drawing
    them tells which layer runs."""

    def __init__(self, kv: Sequence[KVLayer], ops: _WatchedOps) -> None:
        self._kv = kv
        self._ops = ops

    def __len__(self) -> int:
        return len(self._kv)

    def __getitem__(self, layer: int) -> KVLayer:
        pages = self._kv[layer]
        self._ops.layer = layer
        return pages

    def __iter__(self) -> Iterator[KVLayer]:
        for layer in range(len(self._kv)):
            yield self[layer]
        self._ops.layer = None
