# SPDX-License-Identifier: Apache-2.0
"""`python -m kt_kernel`: what this build and machine can do.

Prints; the facts come from `isa`, `machine`, `self_check` and `probe`.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from kt_kernel import isa, machine, probe, self_check
from kt_kernel.formats import FORMATS
from kt_kernel.probe import Limit, Limits, Spread
from kt_kernel.self_check import Check
from kt_kernel.thread_pool import ThreadPool

_DESCRIPTION = "What this build of kt-kernel and this machine can do. Without options: an overview."


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was asked for; 1 if a self-check failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        pool, _ = ThreadPool(options.threads), isa.active()
    except ValueError as error:  # --threads, or one of the environment variables
        parser.error(str(error))
    report: dict[str, Any] = {}
    if options.matrix:
        report["matrix"] = isa.matrix()
    if options.check:
        report["check"] = self_check.run(pool)
    if options.probe:
        report["probe"] = probe.measure(pool, options.seconds)
    if not report:
        report["overview"] = _overview(pool)
    if options.json:
        print(json.dumps(report, indent=2, default=_plain))
    else:
        print("\n\n".join("\n".join(_LINES[name](facts)) for name, facts in report.items()))
    return 0 if all(check.passed for check in report.get("check", ())) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kt_kernel", description=_DESCRIPTION)
    parser.add_argument("--matrix", action="store_true", help="whose kernels each target runs")
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare every op and format of every target with numpy; exit status 1 on a mismatch",
    )
    parser.add_argument(
        "--probe", action="store_true", help="measure memory bandwidth and multiply peaks"
    )
    parser.add_argument(
        "--seconds", type=_positive, default=10, metavar="S", help="of --probe (default: 10)"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="default: KT_THREADS or usable cores"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number; got {text!r}")
    return value


def _overview(pool: ThreadPool) -> dict[str, Any]:
    return {
        "version": version("kt-kernel"),
        "cpu": machine.cpu_name(),
        "targets": {target: _state(target) for target in isa.compiled()},
        "threads": pool.num_threads,
        "huge pages": machine.huge_pages(),
        "formats": {name: each.bits_per_weight() for name, each in FORMATS.items()},
    }


def _state(target: str) -> str:
    if target == isa.active():
        return "active"
    return "available" if target in isa.available() else "not on this CPU"


def _overview_lines(facts: dict[str, Any]) -> list[str]:
    rows = []
    for name, value in facts.items():
        if name == "targets":
            value = ", ".join(f"{target} ({state})" for target, state in value.items())
        elif name == "formats":
            value = ", ".join(f"{each} {bits:g}" for each, bits in value.items()) + " bits/weight"
        rows.append((name, str(value)))
    return _table(rows)


def _matrix_lines(matrix: dict[str, dict[str, str | None]]) -> list[str]:
    rows = [("kernel", *isa.compiled()), ("", *map(_state, isa.compiled()))]
    for kernel, owners in matrix.items():
        rows.append(
            (
                kernel,
                *(
                    "native" if owner == target else "inherited" if owner else "–"
                    for target, owner in owners.items()
                ),
            )
        )
    return _table(rows)


def _check_lines(checks: Sequence[Check]) -> list[str]:
    rows = [("op", "format", "target", "error", "bound", "from scalar", "bound", "")]
    rows += [
        (
            check.op,
            check.format,
            check.target,
            f"{check.error:.1e}",
            f"{check.bound:.1e}",
            f"{check.difference:.1e}",
            f"{check.difference_bound:.1e}",
            "ok" if check.passed else "FAILED",
        )
        for check in checks
    ]
    failed = sum(not check.passed for check in checks)
    verdict = f"FAILED: {failed} of {len(checks)} checks" if failed else f"{len(checks)} checks ok"
    return [*_table(rows), verdict]


def _probe_lines(limits: Limits) -> list[str]:
    threads = f"{limits.num_threads} threads"
    rows = [("min / median / max", "", "1 thread", threads, "scaling")]
    for name, unit, limit in (
        ("memory read", "GB/s", limits.read_gb_per_s),
        ("float32 fma", "GFLOP/s", limits.fma_gflop_per_s),
        ("int8 maddubs, madd, add", "GOP/s", limits.maddubs_madd_gop_per_s),
        ("int8 maddubs, add", "GOP/s", limits.maddubs_add_gop_per_s),
        ("int8 dpbusd", "GOP/s", limits.dpbusd_gop_per_s),
    ):
        rows.append((name, unit, *_limit_cells(limit)))
    cache = machine.last_level_cache_bytes()
    return [
        *_table(rows),
        f"target {limits.target}; {limits.buffer_bytes / 1e6:.0f} MB read, "
        f"{limits.buffer_bytes / cache:.1f} x the outermost caches; "
        f"huge pages: {machine.huge_pages()}",
    ]


def _limit_cells(limit: Limit | None) -> tuple[str, str, str]:
    if limit is None:
        return "–", "–", "–"
    return _cell(limit.one_thread), _cell(limit.all_threads), f"x {limit.scaling:.2f}"


def _cell(spread: Spread) -> str:
    return f"{spread.min:.1f} / {spread.median:.1f} / {spread.max:.1f}"


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows of equal length as lines of aligned columns."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]


def _plain(value: Check | Limits) -> dict[str, Any]:
    """The dataclasses, which `json` does not know, with the verdict of a check."""
    return asdict(value) | ({"passed": value.passed} if isinstance(value, Check) else {})


_LINES: dict[str, Callable[[Any], list[str]]] = {
    "overview": _overview_lines,
    "matrix": _matrix_lines,
    "check": _check_lines,
    "probe": _probe_lines,
}


def _run() -> int:
    """main(), whose reader may leave early: `python -m kt_kernel --matrix | head`."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered is written once more at exit: to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(_run())
