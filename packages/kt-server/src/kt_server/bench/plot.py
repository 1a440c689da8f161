# SPDX-License-Identifier: Apache-2.0
"""Results as a picture: distributions of TTFT and ITL, and output tokens per second."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from kt_server.bench.modes import Result


def check_plotting() -> None:
    """Raises RuntimeError where matplotlib is missing: before the measurement, not after."""
    if find_spec("matplotlib") is None:
        raise RuntimeError(
            "[bench] --plot needs matplotlib; install kt-server[bench], or matplotlib itself"
        )


def plot_results(results: Sequence[Result], file: Path) -> None:
    """Write a PNG (or what the file's ending says).

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    ttft, itl, rate = figure.subplots(1, 3)
    for axes, title in ((ttft, "time to first token"), (itl, "inter-token latency")):
        axes.set(title=title, xlabel="ms", ylabel="share of them below", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    names = []
    for result in results:
        summary = result.summary
        name = f"{summary.name}, {summary.concurrency}"
        names.append(name)
        answered = [record for record in result.records if record.error is None]
        gaps = [gap for record in answered for gap in record.itl]
        for axes, times in ((ttft, [record.ttft for record in answered]), (itl, gaps)):
            if times:
                ordered = sorted(1e3 * time for time in times)
                shares = [(i + 1) / len(ordered) for i in range(len(ordered))]
                axes.step(ordered, shares, where="post", label=name)
    rates = [result.summary.output_tokens_per_s for result in results]
    rate.bar_label(rate.bar(names, rates), fmt="%.1f")
    rate.margins(y=0.1)  # room for the labels
    rate.set(title="output tokens per second")
    rate.tick_params(axis="x", labelrotation=30)
    handles, labels = ttft.get_legend_handles_labels()
    if handles:
        ttft.legend(handles, labels, title="load, streams", fontsize="small")
    figure.savefig(file, dpi=120)
