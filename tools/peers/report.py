# SPDX-License-Identifier: Apache-2.0
"""Results as Markdown for people and JSON for programs. Measures, judges and draws nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from figures import Figure
from results import Block, Limits, Row
from rounds import spread
from shapes import Shape

FIGURES = (
    "| what | format | value | quartiles | rounds | floor | goal | met | from |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
MEASUREMENTS = (
    "| who | tokens | ms | quartiles | GOP/s | GB/s | error | others |\n"
    "|---|---|---|---|---|---|---|---|"
)


def markdown(blocks: Sequence[Block], figures: Sequence[Figure], head: Sequence[str]) -> str:
    """The whole report: where it comes from, figures against their aims, then all measurements."""
    lines = [f"# The MoE layer of {blocks[0].shape.name}", ""]
    lines += [f"- {fact}" for fact in head]
    lines += ["", FIGURES, *map(figure_line, figures)]
    for block in blocks:
        lines += ["", f"## {title(block.shape, block.blocks, block.isa)}", ""]
        lines += [limits_range(block.limits), "", MEASUREMENTS, *map(measurement, block.rows)]
    return "\n".join(lines) + "\n"


def figure_line(figure: Figure) -> str:
    """A row under FIGURES."""
    value, aim = figure.value, figure.aim
    floor, goal = (f"{aim.floor:g}", f"{aim.goal:g}") if aim else ("", "")
    return (
        f"| {figure.what} | {figure.format} | {value.median:.2f} | {value.low:.2f} to "
        f"{value.high:.2f} | {value.rounds} | {floor} | {goal} | {figure.met} | {figure.source} |"
    )


def measurement(row: Row) -> str:
    """A row under MEASUREMENTS."""
    times = spread(row.seconds)
    return (
        f"| {row.label} | {row.num_tokens} | {median(row.seconds) * 1e3:.3f} | "
        f"{times.low * 1e3:.3f} to {times.high * 1e3:.3f} | {row.rate:.1f} | "
        f"{row.bandwidth:.2f} | {row.error:.1e} | {row.others:.0%} |"
    )


def limits_range(limits: Sequence[Limits]) -> str:
    """What probes between the batches of a block gave."""

    def values(field: str) -> Iterator[float]:
        return (getattr(one, field) for one in limits)

    def between(field: str) -> str:
        return f"{min(values(field)):.1f} to {max(values(field)):.1f}"

    return (
        f"Limits before and after each batch: read {between('read')} GB/s, int8 maddubs+madd "
        f"{between('int8')} GOP/s, float32 FMA {between('fma')} GFLOP/s."
    )


def title(shape: Shape, blocks: str, isa: str) -> str:
    """Over a block."""
    layers = f" x {shape.num_layers} layers" if shape.num_layers > 1 else ""
    biases = ", biases" if shape.biases else ""
    return (
        f"{blocks}: {shape.num_experts} experts{layers}, {shape.hidden_size} x "
        f"{shape.intermediate_size}, top-{shape.top_k}, {shape.activation}{biases}, {isa}"
    )


def write_json(blocks: Sequence[Block], path: Path) -> None:
    """Everything, with each round's seconds."""
    path.write_text(json.dumps([asdict(block) for block in blocks], indent=1) + "\n")
