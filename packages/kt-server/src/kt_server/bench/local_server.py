# SPDX-License-Identifier: Apache-2.0
"""A `kt serve` of our own in a process of its own, so that measuring does not share its Python."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LISTENING = re.compile(r"^listening on (http\S+)$")
_KT = "from kt_server.cli import main; main()"
# Answers in flight end within ServerConfig.drain_s; a server that takes longer hangs.
_STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A server that listens.

    Attributes:
        url: where.
        lines: what it said of itself: kernel target, weight format, …
    """

    url: str
    lines: Sequence[str]


@contextlib.contextmanager
def local_server(model: str, arguments: Sequence[str]) -> Iterator[LocalServer]:
    """Start `kt serve MODEL …` on a free port; stop it at the end.

    Raises:
        RuntimeError: it did not start; the message has its own.
    """
    command = [sys.executable, "-c", _KT, "serve", model, "--port", "0", *arguments]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield _wait(process, log.fileno())
        finally:
            _stop(process)


def _wait(process: subprocess.Popen[str], log: int) -> LocalServer:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        if match := _LISTENING.match(line):
            # Whatever it still says must not fill the pipe.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return LocalServer(match[1], lines)
        lines.append(line.rstrip())
    process.wait()
    with open(log, closefd=False) as file:  # the descriptor stays ours
        file.seek(0)
        said = "\n".join(file.read().splitlines()[-5:])
    raise RuntimeError(f"[bench] kt serve must start; it ended with {process.returncode}:\n{said}")


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
