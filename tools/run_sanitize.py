# SPDX-License-Identifier: Apache-2.0
"""Builds kt-kernel and kt-kvcache's core with sanitizers and runs their tests in those builds:
ThreadSanitizer, then AddressSanitizer together with UndefinedBehaviorSanitizer.

`--pool` does only the thread pool's native test, with ThreadSanitizer: half a minute; `--kvcache`
only kt-kvcache. Needs GCC.
Exit status 0 only if every sanitizer first reported the bug planted for it and then nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel_build import (
    KERNEL,
    KVCACHE,
    ROOT,
    StepFailed,
    build,
    capture,
    check_build,
    make_environment,
    must,
    timed,
)

BUILD = KERNEL / "build" / "sanitize"
KVCACHE_BUILD = KVCACHE / "build" / "sanitize"

# Tests that say nothing about these builds: of a kt-kernel that they build themselves, of timings.
ELSEWHERE = ("test_standalone.py", "test_emulated.py", "test_selftest.py", "test_probe.py")
# Targets that are not instrumented (CMakeLists.txt), as pytest's -k.
INSTRUMENTED = "not avx512 and not amx and not avx_vnni"


@dataclass(frozen=True)
class Leg:
    """One instrumented build and what runs in it.

    Attributes:
        name: of the leg and its build directory.
        sanitizers: for -fsanitize.
        preload: libraries that must be in the process before Python starts.
        environment: the sanitizers' options.
        planted: bug of tests/native/planted.cpp -> what its report says.
        tests: test files of kt-kernel; empty: all.
        kvcache_tests: those of kt-kvcache.
        selection: pytest's -k: what the sanitizer itself can bear, and what is instrumented.
    """

    name: str
    sanitizers: str
    preload: tuple[str, ...]
    environment: dict[str, str]
    planted: dict[str, str]
    tests: tuple[str, ...] = ()
    kvcache_tests: tuple[str, ...] = ()
    selection: str = INSTRUMENTED


THREAD = Leg(
    name="thread",
    sanitizers="thread",
    preload=("libtsan.so",),
    environment={
        "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
        "OPENBLAS_NUM_THREADS": "1",  # numpy's threads meet in ways that are not instrumented
    },
    planted={"race": "ThreadSanitizer: data race"},
    # What shares memory between threads. Kernels are pure functions: the other leg runs them all.
    tests=(
        "test_thread_pool.py",
        "test_graph.py",
        "test_attention.py",
        "test_moe.py",
        "test_experts.py",
        "test_linear.py",
        "test_ops.py",
    ),
    kvcache_tests=("test_native_mover.py", "test_page_mover.py", "test_hashing.py"),
    # Of a child forked from a process with threads it expects to start none.
    selection=f"{INSTRUMENTED} and not fork",
)
ADDRESS = Leg(
    name="address",
    sanitizers="address,undefined",
    # libstdc++, because Python does not bring it and AddressSanitizer wants to wrap its throwing.
    preload=("libasan.so", "libstdc++.so.6"),
    environment={
        # CPython frees little at its end: leaks are not told from what it keeps. Tests ask for
        # absurd sizes and expect MemoryError.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
    planted={
        "overrun": "AddressSanitizer: use-after-poison",
        "overflow": "runtime error: signed integer overflow",
    },
)


def main() -> int:
    """Run the legs, even after a failure of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--pool", action="store_true", help="only the thread pool, with ThreadSanitizer"
    )
    parser.add_argument("--kvcache", action="store_true", help="only kt-kvcache, with all")
    arguments = parser.parse_args()
    pool_only = arguments.pool
    failed = []
    for leg in (THREAD,) if pool_only else (THREAD, ADDRESS):
        try:
            if not arguments.kvcache:
                run_leg(leg, pool_only)
            if not pool_only:
                run_kvcache(leg)
        except StepFailed as failure:
            failed.append(f"{leg.name}: {failure}")
    print("\n".join(f"FAILED {line}" for line in failed) or "sanitizers: nothing found")
    return 1 if failed else 0


def run_leg(leg: Leg, pool_only: bool) -> None:
    """Build, prove that the sanitizer reports, run the native tests, run the package's tests."""
    directory = BUILD / leg.name
    targets = ["kt_test_pool", "kt_test_planted", *([] if pool_only else ["_core"])]
    environment = os.environ | leg.environment  # noqa: TID251  # a child's
    with timed(f"{leg.name}: build"):
        build(KERNEL, directory, {"KT_SANITIZE": leg.sanitizers}, targets)
    with timed(f"{leg.name}: planted bugs"):
        for bug, report in leg.planted.items():
            planted = capture([directory / "kt_test_planted", bug], environment)
            if planted.returncode == 0 or report not in planted.stdout:
                raise StepFailed(f"the planted {bug} was not reported:\n{planted.stdout}")
    with timed(f"{leg.name}: pool"):
        must([directory / "kt_test_pool"], environment)
    if pool_only:
        return
    with timed(f"{leg.name}: tests"):
        ignored = [f"--ignore={KERNEL / 'tests' / name}" for name in ELSEWHERE]
        run_tests(leg, KERNEL, directory, leg.tests, leg.selection, ignored)


def run_kvcache(leg: Leg) -> None:
    """Build kt-kvcache's core and run its tests."""
    directory = KVCACHE_BUILD / leg.name
    with timed(f"{leg.name}: kvcache build"):
        build(KVCACHE, directory, {"KT_SANITIZE": leg.sanitizers, "KT_WERROR": "ON"}, ["_core"])
    with timed(f"{leg.name}: kvcache tests"):
        run_tests(leg, KVCACHE, directory, leg.kvcache_tests, "not fork")


def run_tests(
    leg: Leg,
    package: Path,
    directory: Path,
    tests: Sequence[str],
    selection: str,
    options: Sequence[str] = (),
) -> None:
    """Run test files of a package, all if none is named, on its build in `directory`."""
    preloaded = [
        capture(["g++", f"-print-file-name={name}"]).stdout.strip() for name in leg.preload
    ]
    environment = os.environ | leg.environment  # noqa: TID251  # a child's
    environment["LD_PRELOAD"] = ":".join(preloaded)
    python = make_environment(directory, package)
    check_build(python, directory, environment, package)
    pytest: list[object] = [
        python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        selection,
        "--capture=sys",  # a report comes from below Python, and ends the process
        "-c",
        ROOT / "pyproject.toml",
        *options,
    ]
    must([*pytest, *(package / "tests" / name for name in tests or ("",))], environment)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
