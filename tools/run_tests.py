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
from dataclasses import dataclass
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
SUMMARY = re.compile(r"^(?:=+ )?\d+ \w+.* in [\d.]+s\b")  # pytest's last line
COUNT = re.compile(r"(\d+) (passed|failed|error|skipped)")


def main() -> int:
    """Run the suites; the last line has the counts over all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="leave out slow and e2e tests")
    arguments = parser.parse_args()
    selection = ["-m", "not slow and not e2e"] if arguments.fast else []
    results = []
    try:
        for suite in SUITES:
            print(f"\n=== {suite}", flush=True)
            results.append(run_suite(suite, selection))
    except KeyboardInterrupt:
        print("\ninterrupted: not all suites ran", flush=True)
        return 130
    print("\n=== time per package")
    for result in results:
        print(
            f"{result.suite:22s} {result.seconds:7.1f} s  {result.passed:5d} passed  {result.state}"
        )
    print(f"{'total':22s} {sum(result.seconds for result in results):7.1f} s\n")
    passed, failed, skipped = (
        sum(getattr(result, kind) for result in results) for kind in ("passed", "failed", "skipped")
    )
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


@dataclass(frozen=True)
class Result:
    """How one suite went.

    Attributes:
        passed, skipped: tests.
        failed: tests that failed or could not be set up or collected; at least 1 if the suite did
            not end well, whatever the reason.
        state: "ok" or why not.
    """

    suite: str
    seconds: float
    passed: int
    failed: int
    skipped: int
    state: str


def run_suite(suite: str, selection: list[str]) -> Result:
    """One pytest process, its output passed through; an empty suite counts as failed.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    started = time.monotonic()
    directory = ROOT / suite
    tests = directory / "tests" if (directory / "tests").is_dir() else directory
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", *selection]
    command += ["-c", str(ROOT / "pyproject.toml"), str(tests)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    summary = ""
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            summary = line if SUMMARY.search(line) else summary
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()  # it got the same signal, and ends by itself
        raise
    counts = {kind: int(count) for count, kind in COUNT.findall(summary)}
    passed = counts.get("passed", 0)
    failed = counts.get("failed", 0) + counts.get("error", 0)
    state = "ok"
    if status != 0 or passed == 0:
        failed = max(1, failed)
        state = f"FAILED (pytest's exit status: {status})"
    return Result(
        suite, time.monotonic() - started, passed, failed, counts.get("skipped", 0), state
    )


if __name__ == "__main__":
    sys.exit(main())
