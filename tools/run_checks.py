# SPDX-License-Identifier: Apache-2.0
"""Runs every static check of the repository and prints the time of each; `--fix` rewrites
formatting instead.

One list of commands for people and for continuous integration. Tests are run_tests.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
SOURCES = (
    "packages/kt-kernel/src",
    "packages/kt-kvcache/src",
    "packages/kt-runtime/src",
    "packages/kt-server/src",
)


def cpp_files() -> list[str]:
    """The C++ sources, for clang-format."""
    kernel, kvcache = ROOT / "packages" / "kt-kernel", ROOT / "packages" / "kt-kvcache"
    directories = [kernel / name for name in ("include", "csrc", "selftest", "tests/native")]
    return [
        str(p)
        for d in (*directories, kvcache / "csrc", ROOT / "tools" / "peers")
        for p in sorted(d.rglob("*"))
        if p.suffix in (".h", ".cpp") and "third_party" not in p.parts
    ]


def tool_files() -> list[str]:
    """The repository's own scripts, for mypy."""
    return [
        str(p) for d in (ROOT / "tools", ROOT / "tools" / "peers") for p in sorted(d.glob("*.py"))
    ]


def checks() -> dict[str, list[str]]:
    """Name → command."""
    python = sys.executable
    return {
        "ruff": [str(BIN / "ruff"), "check", "."],
        "ruff format": [str(BIN / "ruff"), "format", "--check", "."],
        "clang-format": [str(BIN / "clang-format"), "--dry-run", "--Werror", *cpp_files()],
        "mypy": [str(BIN / "mypy"), *SOURCES, "tools/demo_model/src"],
        "mypy tools": [str(BIN / "mypy"), *tool_files()],
        "import contracts": [str(BIN / "lint-imports")],
        "file sizes": [python, "tools/check_size.py"],
        "benchmark coverage": [python, "tools/check_bench_coverage.py"],
        "instruction sets": [python, "tools/check_isa_leak.py"],
    }


def fixes() -> dict[str, list[str]]:
    """Name → command that rewrites."""
    return {
        "ruff": [str(BIN / "ruff"), "check", "--fix", "."],
        "ruff format": [str(BIN / "ruff"), "format", "."],
        "clang-format": [str(BIN / "clang-format"), "-i", *cpp_files()],
    }


def main() -> int:
    """Run all, even after a failure, so that one run shows everything there is to mend."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fix", action="store_true", help="rewrite formatting instead of checking")
    failed = []
    for name, command in (fixes() if parser.parse_args().fix else checks()).items():
        started = time.monotonic()
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        state = "ok" if result.returncode == 0 else "FAILED"
        print(f"{name:20s} {time.monotonic() - started:6.1f} s  {state}", flush=True)
        if result.returncode != 0:
            failed.append(name)
            print(result.stdout + result.stderr, flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
