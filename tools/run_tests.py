# SPDX-License-Identifier: Apache-2.0
"""Runs every suite (one pytest process per package, then the cross-package tests) and prints the
time of each.

`--fast` leaves out the slow and end-to-end tests. Exit status 0 only if every suite passed and none
was empty.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITES = (
    "packages/kt-kernel",
    "packages/kt-kvcache",
    "packages/kt-runtime",
    "packages/kt-server",
    "tools/demo_model",
    "tests",
)
COUNT = re.compile(r"(\d+) (passed|failed|error|errors|skipped)\b")


def main() -> int:
    """Run the suites; the last line has the counts over all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="leave out slow and e2e tests")
    arguments = parser.parse_args()
    selection = ["-m", "not slow and not e2e"] if arguments.fast else []
    rows: list[tuple[str, float, dict[str, int], bool]] = []
    for suite in SUITES:
        print(f"\n=== {suite}", flush=True)
        started = time.monotonic()
        counts, ok = run_suite(ROOT / suite, selection)
        rows.append((suite, time.monotonic() - started, counts, ok))
    print("\n=== time per package")
    for suite, seconds, counts, ok in rows:
        state = "ok" if ok else "FAILED"
        print(f"{suite:22s} {seconds:7.1f} s  {counts.get('passed', 0):5d} passed  {state}")
    total = {
        kind: sum(counts.get(kind, 0) for _, _, counts, _ in rows)
        for kind in ("passed", "failed", "skipped")
    }
    failed = total["failed"] + sum(not ok and not counts.get("failed") for _, _, counts, ok in rows)
    print(f"{'total':22s} {sum(row[1] for row in rows):7.1f} s\n")
    print(f"{total['passed']} passed, {failed} failed, {total['skipped']} skipped")
    return 1 if failed else 0


def run_suite(directory: Path, selection: list[str]) -> tuple[dict[str, int], bool]:
    """One pytest process, its output passed through; an empty suite counts as failed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--durations=5",
        "-c",
        str(ROOT / "pyproject.toml"),
        *selection,
    ]
    tests = directory / "tests" if (directory / "tests").is_dir() else directory
    process = subprocess.Popen([*command, str(tests)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line if COUNT.search(line) else last
    counts = {
        kind.rstrip("s") if kind == "errors" else kind: int(n) for n, kind in COUNT.findall(last)
    }
    return counts, process.wait() == 0 and counts.get("passed", 0) > 0


if __name__ == "__main__":
    sys.exit(main())
