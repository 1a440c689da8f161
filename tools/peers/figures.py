# SPDX-License-Identifier: Apache-2.0
"""What measurements are judged by: each figure a ratio per round, against the floor and the goal
that the project has set for it. Measures and prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from kt_kernel import formats
from registry import OURS, PEERS
from results import Batch, Block, Row
from rounds import Ratio, paired_ratio, spread
from shapes import FORMATS, Shape

DECODE, FEW, PREFILL = 1, 4, 512  # tokens of the calls that figures are of


@dataclass(frozen=True)
class Aim:
    """Floor and goal of a figure; for some formats, or for all that have no aim of their own."""

    floor: float
    goal: float
    formats: tuple[str, ...] = ()

    def met(self, value: float) -> str:
        """Which of the two a value has reached. A goal below its floor means: less is better."""
        sign = 1 if self.goal > self.floor else -1
        if sign * value >= sign * self.goal:
            return "goal"
        return "floor" if sign * value >= sign * self.floor else "**no**"


FOUR_BITS = ("int4", "q4_0")
EIGHT_BITS = ("int8", "int8-row", "q8_0")
BYTES = (*FOUR_BITS, *EIGHT_BITS, "q4_1", "q4_k", "q5_k", "q6_k", "mxfp4", "fp8")
PREFILL_PROBE = "prefill 512 ÷ {} probe"
PREFILL_LLAMA = "prefill 512 ÷ llama.cpp"
DECODE_PROBE = "decode 1 ÷ read probe"
DECODE_LLAMA = "decode 1 ÷ llama.cpp"
DECODE_REFERENCE = "decode 1 ÷ reference's best"
FEW_BYTES = "4 tokens: time ÷ that of reading"
SCALING = "{}: threads' gain ÷ the probe's"
PACK = "pack from bf16, GB/s"
INT8, FMA = "maddubs+madd", "FMA"
AIMS = {
    PREFILL_PROBE.format(INT8): (Aim(0.75, 0.95, FOUR_BITS),),
    PREFILL_PROBE.format(FMA): (Aim(0.70, 0.90, ("bf16", "fp8")),),
    PREFILL_LLAMA: (
        Aim(2.5, 4.0, FOUR_BITS),
        Aim(2.0, 3.0, ("q4_k", "q6_k", "mxfp4")),
        Aim(1.6, 2.0, EIGHT_BITS),
    ),
    DECODE_PROBE: (Aim(0.75, 0.92, BYTES),),
    DECODE_LLAMA: (Aim(1.4, 2.0, ("q4_0", "q4_k", "q8_0")),),
    DECODE_REFERENCE: (Aim(4.0, 6.0),),
    FEW_BYTES: (Aim(1.4, 1.15),),
    SCALING.format("prefill 512"): (Aim(0.93, 0.98),),
    SCALING.format("decode 1"): (Aim(0.93, 0.98),),
    PACK: (Aim(1.0, 2.0, ("int4",)),),
}


@dataclass(frozen=True)
class Figure:
    """One line of the table; `source` says in absolute figures what it is made of."""

    what: str
    format: str
    value: Ratio
    source: str

    @property
    def aim(self) -> Aim | None:
        """None: nobody has set one."""
        for aim in AIMS[self.what]:
            if not aim.formats or self.format in aim.formats:
                return aim
        return None

    @property
    def met(self) -> str:
        """Empty without an aim."""
        return self.aim.met(self.value.median) if self.aim else ""


def figures_of(blocks: Sequence[Block], num_threads: int) -> list[Figure]:
    """Of all blocks, in the order of AIMS.

    Args:
        blocks: measured.
        num_threads: of our kernel, where it is not measured for its scaling.
    """
    found = [
        figure
        for block in blocks
        for batch in block.batches
        for row in batch.rows
        if (row.peer, row.num_threads) == (OURS, num_threads)
        for figure in figures_of_row(block.shape, batch, row)
    ]
    return in_order(found)


def in_order(figures: Sequence[Figure]) -> list[Figure]:
    """As AIMS has them; formats stay as they come."""
    order = list(AIMS)
    return sorted(figures, key=lambda figure: order.index(figure.what))


def figures_of_row(shape: Shape, batch: Batch, ours: Row) -> Iterator[Figure]:
    """What one of our rows says, with the others of its batch."""
    if batch.num_tokens == PREFILL:
        limit, name = multiply_limit(ours.method)
        yield of_limit(PREFILL_PROBE.format(name), ours, ours.operations, batch.beside[limit])
        yield from of_rival(PREFILL_LLAMA, "llama.cpp", shape, batch, ours)
        yield from of_scaling("prefill 512", limit, batch, ours)
    elif batch.num_tokens == DECODE:
        yield of_limit(DECODE_PROBE, ours, ours.weight_bytes, batch.beside["read"])
        yield from of_rival(DECODE_LLAMA, "llama.cpp", shape, batch, ours)
        yield from of_rival(DECODE_REFERENCE, "reference", shape, batch, ours)
        yield from of_scaling("decode 1", "read", batch, ours)
    elif batch.num_tokens == FEW:
        read = batch.beside["read"]
        bounds = [ours.weight_bytes / rate / 1e9 for rate in read]
        times = paired_ratio(ours.seconds, bounds)
        source = f"{milliseconds(ours)}, {ours.bandwidth:.1f} of {median(read):.1f} GB/s"
        yield Figure(FEW_BYTES, ours.method, times, source)


def multiply_limit(format_name: str) -> tuple[str, str]:
    """The probe that bounds a format's arithmetic: its field in Limits, and its name."""
    mode = formats.FORMATS[FORMATS[format_name].kernel_format].activation_mode
    return ("int8", INT8) if mode == "int8_g32" else ("fma", FMA)


def of_limit(what: str, ours: Row, amount: float, limits: list[float]) -> Figure:
    """A rate (amount per second) over the limit of the same round, in 10^9 per second."""
    rates = [amount / seconds / 1e9 for seconds in ours.seconds]
    unit = "GB/s" if what == DECODE_PROBE else "GOP/s"
    source = f"{milliseconds(ours)}, {median(rates):.1f} of {median(limits):.1f} {unit}"
    return Figure(what, ours.method, paired_ratio(rates, limits), source)


def of_rival(what: str, peer: str, shape: Shape, batch: Batch, ours: Row) -> Iterator[Figure]:
    """How many times as long a peer needs; of several methods and threads its best."""
    methods = PEERS[peer].methods(FORMATS[ours.method], shape)
    rivals = [row for row in batch.rows if row.peer == peer and row.method in methods]
    if rivals:
        best = min(rivals, key=lambda row: median(row.seconds))
        source = f"{milliseconds(ours)}; {best.label}: {milliseconds(best)}"
        yield Figure(what, ours.method, paired_ratio(best.seconds, ours.seconds), source)


def of_scaling(what: str, limit: str, batch: Batch, ours: Row) -> Iterator[Figure]:
    """What more threads gain, over what they gain the probe."""
    for row in batch.rows:
        if (row.peer, row.method) == (OURS, ours.method) and row.num_threads < ours.num_threads:
            gain = paired_ratio(row.seconds, ours.seconds)
            probe = batch.scaling(limit)
            value = spread(
                [one / all_ / probe for one, all_ in zip(row.seconds, ours.seconds, strict=True)]
            )
            source = f"{ours.num_threads} threads: {gain.median:.2f} times 1, probe {probe:.2f}"
            yield Figure(SCALING.format(what), ours.method, value, source)


def milliseconds(row: Row) -> str:
    """The median, for people."""
    return f"{median(row.seconds) * 1e3:.2f} ms"
