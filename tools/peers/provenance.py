# SPDX-License-Identifier: Apache-2.0
"""Where figures come from: machine, commit and command line, as lines of text. Measures nothing."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

from kt_kernel import machine

ROOT = Path(__file__).resolve().parents[2]


def provenance() -> list[str]:
    """One fact a line; what is unknown is said to be."""
    cores = len(os.sched_getaffinity(0))
    cache = machine.last_level_cache_bytes() / 2**20
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    words = [Path(sys.executable).name, os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]
    return [
        f"Machine: {machine.cpu_name()}, {cores} logical CPUs, L3 {cache:.1f} MiB, "
        f"memory {memory:.0f} GiB, {platform.system()} {platform.release()}",
        f"Commit: {commit()}, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
        f"Command: `{shlex.join(words)}`",
    ]


def commit() -> str:
    """The commit of the sources, and whether they differ from it."""
    try:
        describe = ("git", "-C", str(ROOT), "describe", "--always", "--dirty")
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
