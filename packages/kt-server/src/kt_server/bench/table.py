# SPDX-License-Identifier: Apache-2.0
"""Results for people: a table on the terminal, one column per load, errors below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from kt_server.bench.modes import Result


def print_results(results: Sequence[Result], console: Console) -> None:
    """The table, then what failed. The engine's own account is there where a server gives it."""
    names = {result.summary.name for result in results}
    title = " and ".join(sorted(names))
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for result in results:
        summary = result.summary
        streams = "1 stream" if summary.concurrency == 1 else f"{summary.concurrency} streams"
        table.add_column(streams if len(names) == 1 else summary.name, justify="right")
    rows = _ROWS | (_ENGINE_ROWS if all(r.decode and r.decode.steps for r in results) else {})
    for label, figure in rows.items():
        table.add_row(label, *map(figure, results), end_section=label in _LAST_OF_SECTION)
    console.print(table)
    for result in results:
        summary = result.summary
        for error, number in summary.errors.items():
            times = "once" if number == 1 else f"{number} times"
            where = f"{summary.name}, {summary.concurrency}"
            console.print(f"failed {times} ({where}): {error}", markup=False, soft_wrap=True)


def _per_answer(result: Result, tokens: int) -> str:
    summary = result.summary
    return f"{tokens / max(1, summary.num_requests - summary.num_failed):.0f}"


_ROWS: dict[str, Callable[[Result], str]] = {
    "requests": lambda r: str(r.summary.num_requests),
    "failed": lambda r: str(r.summary.num_failed),
    "input tokens each": lambda r: _per_answer(r, r.summary.prompt_tokens),
    "of them cached": lambda r: _per_answer(r, r.summary.cached_tokens),
    "output tokens each": lambda r: _per_answer(r, r.summary.output_tokens),
    "output tokens/s": lambda r: f"{r.summary.output_tokens_per_s:.1f}",
    "all tokens/s": lambda r: f"{r.summary.total_tokens_per_s:.1f}",
    "good requests/s": lambda r: f"{r.summary.goodput_per_s:.2f}",
    "TTFT p50, ms": lambda r: f"{r.summary.ttft.p50:.1f}",
    "TTFT p99, ms": lambda r: f"{r.summary.ttft.p99:.1f}",
    "ITL p50, ms": lambda r: f"{r.summary.itl.p50:.1f}",
    "ITL p99, ms": lambda r: f"{r.summary.itl.p99:.1f}",
    "TPOT p50, ms": lambda r: f"{r.summary.tpot.p50:.1f}",
}
_ENGINE_ROWS: dict[str, Callable[[Result], str]] = {
    "decode steps": lambda r: f"{r.decode.steps:.0f}" if r.decode else "",
    "each, ms": lambda r: f"{1e3 * r.decode.step_s / r.decode.steps:.2f}" if r.decode else "",
    "outside the model": lambda r: f"{100 * r.decode.share_outside:.1f} %" if r.decode else "",
}
_LAST_OF_SECTION = ("failed", "output tokens each", "good requests/s", "TPOT p50, ms")
