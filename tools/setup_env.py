# SPDX-License-Identifier: Apache-2.0
"""Builds and refreshes .venv: requirements under constraints.txt, CPU torch, the four packages in
editable form.

Runs on the system's Python with its standard library only, because nothing else is there yet. Does
nothing, quickly, when what it depends on has not changed; goes on where it was interrupted. Not an
installer for users: they `pip install` the packages.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".kt-setup.json"  # what was done, so what need not be done again
CONSTRAINTS = ROOT / "constraints.txt"
VENV_STEP = "virtual environment"
GROUPS = ("build", "run", "test", "check", "bench")
MINIMUM_PYTHON = (3, 11)
PACKAGES = (
    "packages/kt-kernel",
    "packages/kt-kvcache",
    "packages/kt-runtime",
    "packages/kt-server",
    "tools/demo_model",
)
# Changes here mean that a package must be installed again: its metadata, and of those with a core
# every C++ source.
CORE_SOURCES = ("CMakeLists.txt", "include/**/*.h", "csrc/**/*.h", "csrc/**/*.cpp")


class SetupError(Exception):
    """Something the user has to do first; the message says what."""


def main() -> int:
    """Bring .venv up to date; 0 on success, else a message saying what to do."""
    started = time.monotonic()
    try:
        check_prerequisites()
        worked = refresh()
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(
            f"setup: this failed, for the reason above: {' '.join(map(str, error.cmd))}\n"
            "setup: `make setup` goes on from here; `make clean` first starts from nothing",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; `make setup` goes on from here", file=sys.stderr)
        return 130
    if worked:
        print(f"setup: done in {time.monotonic() - started:.0f} s", flush=True)
    return 0


def refresh() -> bool:
    """Run the steps that are not up to date, noting each when it is done; whether there were
    any.
    """
    stamp = read_stamp()
    done, had = stamp["done"], set(stamp["distributions"])
    if not had <= distributions():  # somebody uninstalled something: only pip cannot mend itself
        done = {s: k for s, k in done.items() if s == VENV_STEP and "pip" in distributions()}
    worked = False
    for step, key, action in steps():
        if done.get(step) == key:
            continue
        worked = True
        print(f"setup: {step}", flush=True)
        action()
        done[step] = key
        text = json.dumps({"done": done, "distributions": sorted(distributions())}, indent=1)
        partial_stamp = STAMP.with_suffix(".partial")
        partial_stamp.write_text(text)
        partial_stamp.replace(STAMP)
    return worked


def read_stamp() -> dict[str, Any]:
    """What the last run noted; nothing done if there was none or it cannot be read."""
    try:
        stamp = json.loads(STAMP.read_text())
        return {"done": dict(stamp["done"]), "distributions": list(stamp["distributions"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"done": {}, "distributions": []}


def distributions() -> set[str]:
    """Names of what is installed in .venv; a version may change unnoticed, that is its user's
    choice.
    """
    return {path.name.split("-")[0] for path in VENV.glob("lib/python*/site-packages/*.dist-info")}


def steps() -> Iterator[tuple[str, str, Callable[[], None]]]:
    """The steps in order, each with the fingerprint that tells whether it is still up to date."""
    # A patch release of the same Python keeps the environment; all else needs a new one.
    interpreter = f"{sys.base_prefix} {sys.version_info.major}.{sys.version_info.minor} "
    yield VENV_STEP, interpreter, create_venv
    yield "torch (CPU build)", interpreter + digest(CONSTRAINTS), install_torch
    requirements = interpreter + digest(ROOT / "pyproject.toml", CONSTRAINTS)
    yield "requirements", requirements, install_requirements
    for package in PACKAGES:
        directory = ROOT / package
        files = [directory / "pyproject.toml"]
        files += sorted(p for pattern in CORE_SOURCES for p in directory.glob(pattern))
        key = interpreter + digest(*files)
        yield f"install {package}", key, partial(install_editable, directory)


def check_prerequisites() -> None:
    """Everything pip cannot bring: Python with venv and headers, a C++20 compiler."""
    missing = []
    if sys.version_info[:2] < MINIMUM_PYTHON:
        raise SetupError(
            f"needs Python 3.11 or newer; this is {sys.version.split()[0]} (set PYTHON=…)"
        )
    try:
        import ensurepip  # noqa: F401 — only its presence matters: venv cannot make pip without it
    except ImportError:
        missing.append("python3-venv")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing.append("python3-dev")
    if shutil.which("c++") is None and shutil.which("g++") is None:
        missing.append("g++")
    if missing:
        raise SetupError(f"missing system packages; on Debian: apt-get install {' '.join(missing)}")


def create_venv() -> None:
    """A fresh virtual environment with a pip that knows dependency groups (25.1).

    Cleared first: a half-made one, or one of another Python, cannot be mended.
    """
    run(sys.executable, "-m", "venv", "--clear", VENV)
    pip("install", "pip>=25.1")


def install_torch() -> None:
    """The CPU build only. A plain `torch` from a public index brings gigabytes of CUDA, so the
    plan is read first.
    """
    requirement = next(
        line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch==")
    )
    command = (PYTHON, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", requirement)
    report = subprocess.run(
        [str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True
    )
    planned = [item["metadata"]["name"].lower() for item in json.loads(report.stdout)["install"]]
    if any(name.startswith(("nvidia", "cuda")) for name in planned):
        raise SetupError(
            f"your package index offers {requirement} only as a CUDA build. Add PyTorch's CPU "
            "index (its address is on pytorch.org: Get Started, Linux, Pip, CPU) and run again: "
            "PIP_EXTRA_INDEX_URL=<that address> make setup"
        )
    pip("install", requirement)


def install_requirements() -> None:
    """Everything the packages, their tests and the tools need, from the root's dependency
    groups.
    """
    groups = [
        argument
        for group in GROUPS
        for argument in ("--group", f"{ROOT / 'pyproject.toml'}:{group}")
    ]
    pip("install", "--constraint", CONSTRAINTS, *groups)


def install_editable(directory: Path) -> None:
    """One of our packages; its requirements are there already, so nothing can be pulled in
    sideways.
    """
    # Without it kt-kvcache installs as pure Python where its core does not compile.
    os.environ["KT_REQUIRE_CORE"] = "1"  # noqa: TID251 — for pip's children
    pip("install", "--no-build-isolation", "--no-deps", "--editable", directory)


def digest(*files: Path) -> str:
    """One hash over names and contents."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode())
        total.update(file.read_bytes())
    return total.hexdigest()


def pip(*arguments: object) -> None:
    """The virtual environment's pip: with its progress on a terminal, quiet elsewhere."""
    quiet = () if sys.stdout.isatty() else ("--quiet",)
    run(PYTHON, "-m", "pip", "--disable-pip-version-check", *quiet, *arguments)


def run(*command: object) -> None:
    """A command that must succeed; its output is the user's to see."""
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
