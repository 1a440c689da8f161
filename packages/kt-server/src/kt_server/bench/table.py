# SPDX-License-Identifier: Apache-2.0
"""Results for people: a table on the terminal, errors included."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from kt_server.bench.modes import Result

_COLUMNS = (
    "load",
    "streams",
    "requests",
    "failed",
    "in",
    "cached",
    "out",
    "out tok/s",
    "total tok/s",
    "good req/s",
    "TTFT p50",
    "TTFT p99",
    "ITL p50",
    "ITL p99",
    "TPOT p50",
)


def print_results(results: Sequence[Result], console: Console) -> None:
    """The table; then what failed, and the engine's own account where there is one."""
    table = Table(title="times in ms; in, cached, out: tokens per answered request")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "load" else "right")
    for result in results:
        table.add_row(*_row(result))
    console.print(table)
    for result in results:
        summary = result.summary
        for error, number in summary.errors.items():
            times = "once" if number == 1 else f"{number} times"
            where = f"{summary.name}, {summary.concurrency} streams"
            console.print(f"failed {times} ({where}): {error}", markup=False, soft_wrap=True)
        if result.decode is not None and result.decode.steps:
            decode = result.decode
            console.print(
                f"{summary.name}, {summary.concurrency} streams: {decode.steps:.0f} decode steps, "
                f"{1e3 * decode.step_s / decode.steps:.2f} ms each, of which "
                f"{100 * decode.share_outside:.1f} % outside the model",
                markup=False,
                soft_wrap=True,
            )


def _row(result: Result) -> list[str]:
    summary = result.summary
    answered = max(1, summary.num_requests - summary.num_failed)
    return [
        summary.name,
        str(summary.concurrency),
        str(summary.num_requests),
        str(summary.num_failed),
        f"{summary.prompt_tokens / answered:.0f}",
        f"{summary.cached_tokens / answered:.0f}",
        f"{summary.output_tokens / answered:.0f}",
        f"{summary.output_tokens_per_s:.1f}",
        f"{summary.total_tokens_per_s:.1f}",
        f"{summary.goodput_per_s:.2f}",
        f"{summary.ttft.p50:.1f}",
        f"{summary.ttft.p99:.1f}",
        f"{summary.itl.p50:.1f}",
        f"{summary.itl.p99:.1f}",
        f"{summary.tpot.p50:.1f}",
    ]
