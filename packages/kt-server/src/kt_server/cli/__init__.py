# SPDX-License-Identifier: Apache-2.0
"""Where `kt` starts: has the disk begin to read a model, then imports the commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread

# What a fast disk delivers while the commands are imported and their options parsed.
_EARLY_BYTES = 512 << 20


def main() -> None:
    """Entry point."""
    read_early(sys.argv[1:])
    from kt_server.cli.commands import run_app

    run_app()


def read_early(words: Sequence[str]) -> None:
    """Ask the system for the beginning of the GGUF file that a command line names, if any.

    Advice only. Once the options are known, `ReadAhead` goes on in the order of use.
    """
    if any(word.startswith("--pack-cache") for word in words):
        return  # little of the file may be needed
    for word in words:
        if word.endswith(".gguf"):
            Thread(target=_advise, args=(word,), daemon=True).start()  # asking blocks


def _advise(path: str) -> None:
    with suppress(OSError), Path(path).open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, _EARLY_BYTES, os.POSIX_FADV_WILLNEED)
