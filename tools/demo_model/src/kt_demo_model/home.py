# SPDX-License-Identifier: Apache-2.0
"""Directories under $KT_HOME: locked, published whole or not at all, rebuilt with their recipe.

Knows nothing about models; a builder function fills an empty directory.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST_NAME = "kt_manifest.json"


def kt_home() -> Path:
    """The root of everything KT keeps on disk: $KT_HOME, else ~/.cache/kt."""
    # The one place where this package reads the environment.
    configured = os.environ.get("KT_HOME")  # noqa: TID251 -- see above
    return Path(configured or "~/.cache/kt").expanduser()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes (and threads) on the file `path`.

    The operating system drops the lock when its holder dies, so a killed build blocks nobody.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        yield


def published_directory(
    directory: Path, recipe: dict[str, str], build: Callable[[Path], None]
) -> Path:
    """Return `directory`, first building it if it is absent, incomplete or of another recipe.

    Args:
        directory: Where the result belongs. Its parent also holds the lock and the work area.
        recipe: What the content depends on; written into the manifest and compared with it.
        build: Fills the empty directory it is given. Runs at most once at a time on a machine.

    Returns:
        `directory`, complete. Readers never see it half written: it appears by one rename.
    """
    if _is_current(directory, recipe):
        return directory
    with locked(directory.parent / f".{directory.name}.lock"):
        if _is_current(directory, recipe):  # another process built it while this one waited
            return directory
        partial = directory.parent / f".{directory.name}.partial"
        stale = directory.parent / f".{directory.name}.stale"
        for leftover in (partial, stale):  # of a build that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        try:
            build(partial)
            sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
            manifest = json.dumps({"recipe": recipe, "sizes": sizes}, indent=2)
            (partial / MANIFEST_NAME).write_text(manifest + "\n", encoding="utf-8")
            if directory.exists():
                directory.rename(stale)
            partial.rename(directory)
        finally:
            for leftover in (partial, stale):
                shutil.rmtree(leftover, ignore_errors=True)
    return directory


def _is_current(directory: Path, recipe: dict[str, str]) -> bool:
    try:
        manifest = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
        return manifest["recipe"] == recipe and all(
            (directory / name).stat().st_size == size for name, size in manifest["sizes"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):  # absent, truncated or not a manifest
        return False
