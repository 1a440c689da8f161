# SPDX-License-Identifier: Apache-2.0
"""`kt doctor`: prints kt_runtime.inspect's report."""

from __future__ import annotations

import typer

from kt_runtime import inspect


def doctor() -> None:
    """Show what this machine offers, what is installed, and what is wrong.

    Exit status 1 if something is wrong.
    """
    from rich.console import Console
    from rich.table import Table

    report = inspect.doctor()
    targets = ", ".join(
        f"{name} (active)" if name == report.target_active else name
        for name in report.targets_available
    )
    gib = 2**30
    memory = f"{report.memory_available / gib:.1f} of {report.memory_total / gib:.1f} GiB free"
    rows = {
        "CPU": report.cpu,
        "kernel targets": targets or "none",
        "threads": str(report.num_threads or "unknown"),
        "memory": memory,
        "KT_HOME": f"{report.kt_home} ({report.disk_free / gib:.1f} GiB free)",
        "Python": report.python,
        "torch build": report.torch_build,
    }
    rows |= {name: version or "not installed" for name, version in report.versions.items()}
    rows |= {
        f"model {name}": str(path) if path else "built on first use"
        for name, path in report.models.items()
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows.items():
        table.add_row(label, value)
    console = Console(highlight=False, markup=False)
    console.print(table)
    for problem in report.problems:
        console.print(f"problem: {problem.what}\n         {problem.remedy}", soft_wrap=True)
    console.print("" if report.problems else "no problems found")
    if report.problems:
        raise typer.Exit(1)
