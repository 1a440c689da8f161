# SPDX-License-Identifier: Apache-2.0
"""What was measured: seconds and limits, and what follows from one of them alone. What compares two
is in figures.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, median

from shapes import Shape


@dataclass(frozen=True)
class Limits:
    """What the machine can do, measured before or after a batch, by as many threads as our kernel
    has: GB/s read, GOP/s of int8 maddubs+madd+add, GFLOP/s of float32 FMA; and how many times one
    thread's each of them is.
    """

    read: float
    int8: float
    fma: float
    read_scaling: float
    int8_scaling: float
    fma_scaling: float


@dataclass(frozen=True)
class Row:
    """One contender at one batch.

    Attributes:
        method: what the peer calls the format; ours are named as in shapes.FORMATS.
        seconds: one per round.
        weight_bytes: of the experts that a call touched, in this peer's storage; a mean.
        error: relative RMS difference to numpy.
        others: share of the machine that other processes took meanwhile, 0 to 1.
    """

    peer: str
    method: str
    num_threads: int
    num_tokens: int
    seconds: list[float]
    weight_bytes: float
    operations: int
    error: float
    others: float

    @property
    def label(self) -> str:
        """Who, for people."""
        plural = "s" if self.num_threads > 1 else ""
        return f"{self.peer} {self.method}, {self.num_threads} thread{plural}"

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
class Batch:
    """All contenders at one number of tokens, with the limits around them and, because those of a
    shared machine change within seconds, of every round.

    Attributes:
        beside: per round, by the name of a field of Limits: those that bound this batch, taken next
            to our kernel's run.
    """

    num_tokens: int
    before: Limits
    after: Limits
    beside: dict[str, list[float]]
    rows: list[Row]

    def scaling(self, name: str) -> float:
        """That of a field of Limits, as it was meanwhile: the mean of before and after."""
        field = f"{name}_scaling"
        return fmean((getattr(self.before, field), getattr(self.after, field)))


@dataclass(frozen=True)
class Block:
    """All batches of one shape and one weight file."""

    shape: Shape
    isa: str
    blocks: str
    batches: list[Batch]

    @property
    def rows(self) -> list[Row]:
        """Of all batches."""
        return [row for batch in self.batches for row in batch.rows]

    @property
    def limits(self) -> list[Limits]:
        """All that were taken."""
        return [self.batches[0].before, *(batch.after for batch in self.batches)]
