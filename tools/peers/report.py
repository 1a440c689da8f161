# SPDX-License-Identifier: Apache-2.0
"""Results as a table for people and JSON for programs. Measures nothing, draws nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rounds import Ratio
from shapes import Shape


@dataclass(frozen=True)
class Limits:
    """What the machine can do, measured before or after a block, by as many threads as the peers
    had: GB/s read, GOP/s of int8 maddubs+madd+add, GFLOP/s of float32 FMA.
    """

    read: float
    int8: float
    fma: float


@dataclass(frozen=True)
class Row:
    """One peer at one batch.

    Attributes:
        weight_bytes: of the experts that a call touched, in this peer's storage; a mean.
        ratio: its time over ours, paired; ours is 1.
        error: relative RMS difference to numpy.
        others: share of the machine that other processes took meanwhile, 0 to 1.
    """

    format: str
    num_tokens: int
    peer: str
    method: str
    num_threads: int
    seconds: list[float]
    weight_bytes: float
    operations: int
    ratio: Ratio
    error: float
    others: float

    @property
    def label(self) -> str:
        """Who, for people."""
        return f"{self.peer} {self.method}"

    @property
    def rate(self) -> float:
        """Median GOP/s."""
        return self.operations / median(self.seconds) / 1e9

    @property
    def bandwidth(self) -> float:
        """Median GB/s of weights."""
        return self.weight_bytes / median(self.seconds) / 1e9

    @property
    def intensity(self) -> float:
        """Operations per byte of weights."""
        return self.operations / self.weight_bytes


@dataclass(frozen=True)
class Block:
    """All rows of one shape and format, with the limits around them."""

    shape: Shape
    isa: str
    before: Limits
    after: Limits
    rows: list[Row]


COLUMNS = (
    f"{'format':8s} {'tokens':>6s} {'peer':22s} {'thr':>3s} {'ms':>9s} {'GOP/s':>7s} {'GB/s':>6s}"
    f" {'time / ours':>11s} {'quartiles':>13s} {'n':>3s} {'error':>8s} {'others':>6s}"
)


def line(row: Row) -> str:
    """A row of the table under COLUMNS."""
    ratio = row.ratio
    return (
        f"{row.format:8s} {row.num_tokens:6d} {row.label:22.22s} "
        f"{row.num_threads:3d} {median(row.seconds) * 1e3:9.3f} {row.rate:7.1f} "
        f"{row.bandwidth:6.2f} {ratio.median:11.2f} {ratio.low:6.2f}-{ratio.high:<6.2f} "
        f"{ratio.rounds:3d} {row.error:8.1e} {row.others:6.0%}"
    )


def limits_line(limits: Limits) -> str:
    """Under or over a block's table."""
    return (
        f"limits: read {limits.read:.1f} GB/s, int8 {limits.int8:.0f} GOP/s, "
        f"float32 FMA {limits.fma:.0f} GFLOP/s"
    )


def title(shape: Shape, isa: str) -> str:
    """Over a block."""
    layers = f" x {shape.num_layers} layers" if shape.num_layers > 1 else ""
    return (
        f"{shape.name}: {shape.num_experts} experts{layers}, {shape.hidden_size} x "
        f"{shape.intermediate_size}, top-{shape.top_k}, {isa}"
    )


def write_json(blocks: Sequence[Block], path: Path) -> None:
    """Everything, with each round's seconds."""
    path.write_text(json.dumps([asdict(block) for block in blocks], indent=1) + "\n")
