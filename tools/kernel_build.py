# SPDX-License-Identifier: Apache-2.0
"""Builds of kt-kernel and of kt-kvcache's core besides the installed ones, and a Python that
imports such a build. For the tools that test them (run_sanitize.py, run_mutations.py); no command
of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNEL = ROOT / "packages" / "kt-kernel"
KVCACHE = ROOT / "packages" / "kt-kvcache"
JOBS = min(os.cpu_count() or 1, 8)  # a compiler of instrumented kernels takes up to 1 GB


class StepFailed(Exception):
    """A step did not end as it must."""


def build(
    source: Path, directory: Path, definitions: Mapping[str, str], targets: Sequence[str]
) -> None:
    """Configure and compile `targets` in `directory`; later calls compile what has changed.

    Raises:
        StepFailed: with the compiler's output.
    """
    cmake = [sys.executable, "-m", "cmake"]
    nanobind = capture([sys.executable, "-m", "nanobind", "--cmake_dir"]).stdout.strip()
    configure: list[object] = [*cmake, "-S", source, "-B", directory]
    configure += [f"-D{name}={value}" for name, value in definitions.items()]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dnanobind_DIR={nanobind}"]
    for command in (
        configure,
        [*cmake, "--build", directory, "-j", str(JOBS), "--target", *targets],
    ):
        result = capture(command)
        if result.returncode != 0:
            raise StepFailed(f"the build failed:\n{result.stdout}")


def make_environment(directory: Path, package: Path = KERNEL) -> Path:
    """A virtual environment whose `package` is the build in `directory`; its Python.

    In the usual environment an import hook of the editable install finds the usual build, whatever
    PYTHONPATH says. This one sees the other's packages, but not its hooks.
    """
    venv = directory / "venv"
    shutil.rmtree(venv, ignore_errors=True)
    must([sys.executable, "-m", "venv", "--without-pip", "--symlinks", venv])
    site = next(venv.glob("lib/python*/site-packages"))
    # .pth files (hooks) are read in the directory of a .pth file, not in those that it names.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others))
    name = package.name.replace("-", "_")
    (site / name).mkdir()
    for source in [*(package / "src" / name).iterdir(), *directory.glob("_core.*.so")]:
        if source.name != "__pycache__":
            (site / name / source.name).symlink_to(source)
    return venv / "bin" / "python"


def check_build(
    python: Path,
    directory: Path,
    environment: Mapping[str, str] | None = None,
    package: Path = KERNEL,
) -> None:
    """Refuse to test another build than the one in `directory`.

    Raises:
        StepFailed: it is another.
    """
    name = package.name.replace("-", "_")
    code = f"import {name}._core as core; print(core.__file__)"
    result = capture([python, "-c", code], environment)
    if not Path(result.stdout.strip()).resolve().is_relative_to(directory.resolve()):
        raise StepFailed(f"{name} is not the build in {directory}:\n{result.stdout}")


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Print a step's name and time."""
    started = time.monotonic()
    try:
        yield
    finally:
        print(f"{step:24s} {time.monotonic() - started:6.1f} s", flush=True)


def capture(
    command: Sequence[object], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command; stdout and stderr together."""
    return subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        check=False,
    )


def must(command: Sequence[object], environment: Mapping[str, str] | None = None) -> None:
    """Run a command that must succeed; its output is the user's to see.

    Raises:
        StepFailed: it did not.
    """
    status = subprocess.run([str(part) for part in command], env=environment, check=False)
    if status.returncode != 0:
        raise StepFailed(f"exit status {status.returncode}: {' '.join(map(str, command))}")
