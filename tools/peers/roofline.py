# SPDX-License-Identifier: Apache-2.0
"""Results as a roofline plot: operations per second over operations per byte of weights, under what
the machine can do. Needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from registry import OURS
from results import Block, Limits, Row

# Distinct for colour-blind readers (Okabe and Ito, 2008); ours first.
COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS = "osD^vPX*"

Array = np.ndarray[Any, Any]


def draw(blocks: Sequence[Block], path: Path) -> None:
    """One panel per block, all with the same axes, as PNG."""
    columns = min(3, len(blocks))
    rows = -(-len(blocks) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for panel, block in zip(grid.flat, blocks, strict=False):
        draw_block(panel, block)
    for panel in grid.flat[len(blocks) :]:
        panel.set_visible(False)
    figure.savefig(path, dpi=144)


def draw_block(panel: Axes, block: Block) -> None:
    """Ceilings, which are those of all threads, and one line per contender whose points are its
    batches; ours with fewer threads, which is there for its scaling, is left out.
    """
    ceilings(panel, block)
    all_threads = max(row.num_threads for row in block.rows)
    lines: dict[str, list[Row]] = {}
    for row in block.rows:
        if row.peer != OURS or row.num_threads == all_threads:
            lines.setdefault(row.label, []).append(row)
    for number, (label, rows) in enumerate(lines.items()):
        panel.plot(
            [row.intensity for row in rows],
            [row.rate for row in rows],
            color=COLORS[number % len(COLORS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            linewidth=1.2,
            label=label,
        )
        if number == 0:
            for row in rows:
                panel.annotate(
                    str(row.num_tokens),
                    (row.intensity, row.rate),
                    textcoords="offset points",
                    xytext=(0, 7),
                    ha="center",
                    fontsize=8,
                )
    panel.set_title(f"{block.blocks}, {block.shape.name} ({block.isa})", fontsize=10)
    panel.set_xlabel("operations per byte of weights (numbers: tokens)")
    panel.set_ylabel("GOP/s")
    panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    panel.grid(which="both", linewidth=0.3, alpha=0.5)


def ceilings(panel: Axes, block: Block) -> None:
    """Bands between the least and the most that limits were: memory as a slope, arithmetic flat."""
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    intensities = [row.intensity for row in block.rows]
    ridges = [limits.int8 / limits.read for limits in block.limits]
    x = np.geomspace(min(intensities) / 2, max(*intensities, *ridges) * 2, 200)
    kinds = (
        ("int8", "int8 maddubs+madd", "-", "bottom"),
        ("fma", "float32 FMA", "--", "top"),
    )
    for kind, name, style, side in kinds:

        def roof(limits: Limits, kind: str = kind) -> Array:
            roof: Array = np.minimum(limits.read * x, getattr(limits, kind))
            return roof

        roofs = [roof(limits) for limits in block.limits]
        low, middle, high = np.min(roofs, 0), np.median(roofs, 0), np.max(roofs, 0)
        panel.fill_between(x, low, high, color="0.6", alpha=0.3, linewidth=0)
        panel.plot(x, middle, style, color="0.3", linewidth=1)
        # Above the upper roof, below the lower one: the two may be close.
        panel.annotate(
            name,
            (x[-1], middle[-1]),
            textcoords="offset points",
            xytext=(-2, 2 if side == "bottom" else -2),
            ha="right",
            va=side,
            fontsize=8,
            color="0.3",
        )
