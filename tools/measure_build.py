# SPDX-License-Identifier: Apache-2.0
"""How long kt-kernel's wheel with all targets takes to build from nothing, and how large it is.

The build's tools (scikit-build-core, nanobind, cmake, ninja) are those of this Python: downloading
them is not counted. Prints rows of the table of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KERNEL = Path(__file__).resolve().parent.parent / "packages" / "kt-kernel"
MINUTES = (5, 3)  # floor and goal on two cores
MEGABYTES = (15, 8)


def main() -> int:
    """Build once in an empty directory and print; 1 if the build fails."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="kt-build-") as directory:
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
        command += ["-C", f"build-dir={directory}/build", "-w", directory, str(KERNEL)]
        started = time.monotonic()
        if subprocess.run(command, check=False).returncode != 0:
            return 1
        minutes = (time.monotonic() - started) / 60
        (wheel,) = Path(directory).glob("*.whl")
        size = wheel.stat().st_size / 1e6
    print("| what | value | floor | goal | met |\n|---|---|---|---|---|")
    print(row(f"build of all targets, {cores} cores, minutes", minutes, *MINUTES))
    print(row("wheel, MB", size, *MEGABYTES))
    return 0


def row(what: str, value: float, floor: float, goal: float) -> str:
    """Of the table; less is better."""
    met = "goal" if value <= goal else "floor" if value <= floor else "**no**"
    return f"| {what} | {value:.1f} | {floor} | {goal} | {met} |"


if __name__ == "__main__":
    sys.exit(main())
