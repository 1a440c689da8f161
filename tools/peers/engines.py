# SPDX-License-Identifier: Apache-2.0
"""Whole engines on one model file: how each is built, run without a server, and served. Times
nothing itself, except where a program reports its own figures.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from child import PeerError
from fetch import home, step
from peer_llama_cpp import ISA_OPTIONS, OPTIONS, LlamaCpp, cmake_build

HERE = Path(__file__).parent
START_SECONDS = 900  # loading 17 GB from a slow disk
RUN_SECONDS = 1800


@dataclass(frozen=True)
class Offline:
    """Tokens per second without a server."""

    prefill: float
    decode: float


@dataclass(frozen=True)
class Served:
    """A server that answers.

    Attributes:
        url: of its API, with /v1.
        ready_seconds: from the start of its process until /health said so.
        pid: of its process.
    """

    url: str
    ready_seconds: float
    pid: int


class WholeEngine(Protocol):
    """One engine and the instruction set it may use."""

    name: str

    def offline(self, model: Path, *, prompt: int, generate: int, threads: int) -> Offline:
        """A prompt of `prompt` tokens alone, then `generate` tokens from an empty context."""

    def serve_command(
        self, model: Path, *, port: int, slots: int, context: int, threads: int
    ) -> list[str]:
        """The server for `slots` streams of `context` tokens each."""


class Kt:
    """Ours, from this Python."""

    name = "kt"

    def __init__(self, isa: str) -> None:
        self._environment = [] if isa == "native" else ["env", f"KT_ISA={isa}"]

    def offline(self, model: Path, *, prompt: int, generate: int, threads: int) -> Offline:
        """Through LLM: scheduler, pages and sampler included."""
        words = [*self._environment, sys.executable, str(HERE / "offline_kt.py"), str(model)]
        words += ["--prompt", str(prompt), "--generate", str(generate), "--threads", str(threads)]
        found = json.loads(output_of(words).splitlines()[-1])
        return Offline(found["prefill_tokens_per_s"], found["decode_tokens_per_s"])

    def serve_command(
        self, model: Path, *, port: int, slots: int, context: int, threads: int
    ) -> list[str]:
        """`kt serve`."""
        kt = str(Path(sys.executable).parent / "kt")
        words = [*self._environment, kt, "serve", str(model), "--port", str(port)]
        words += ["--num-threads", str(threads), "--max-model-len", str(context)]
        return [*words, "--max-num-seqs", str(slots)]


class LlamaCppEngine:
    """llama.cpp's own programs, built from the sources that kernels.py also builds from."""

    name = "llama.cpp"

    def __init__(self, isa: str) -> None:
        self._isa = isa

    def build(self, jobs: int) -> None:
        """llama-bench and llama-server: some ten minutes on two cores."""
        tree = LlamaCpp().fetch_tree()
        step(f"build llama-bench and llama-server for {self._isa}")
        off = ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES")
        options = {**OPTIONS, **ISA_OPTIONS[self._isa], **dict.fromkeys(off, "OFF")}
        cmake_build(tree, self._directory(), options, ["llama-bench", "llama-server"], jobs)

    def offline(self, model: Path, *, prompt: int, generate: int, threads: int) -> Offline:
        """llama-bench, which runs both once before it measures."""
        words = [self._program("llama-bench"), "-m", str(model), "-t", str(threads)]
        words += ["-p", str(prompt), "-n", str(generate), "-r", "1", "-o", "json"]
        rates = {
            bool(found["n_gen"]): float(found["avg_ts"]) for found in json.loads(output_of(words))
        }
        return Offline(prefill=rates[False], decode=rates[True])

    def serve_command(
        self, model: Path, *, port: int, slots: int, context: int, threads: int
    ) -> list[str]:
        """llama-server with continuous batching, its default."""
        words = [self._program("llama-server"), "-m", str(model), "--port", str(port)]
        words += ["-t", str(threads), "-np", str(slots), "-c", str(slots * context)]
        return [*words, "--no-webui"]

    def _directory(self) -> Path:
        return home() / "llama.cpp" / f"engine-{self._isa}"

    def _program(self, name: str) -> str:
        program = self._directory() / "bin" / name
        if not program.exists():
            raise PeerError(
                f"llama.cpp: {name} is not built for {self._isa}; "
                f"`python tools/peers/end_to_end.py --build --isa {self._isa}` does it"
            )
        return str(program)


def output_of(words: Sequence[str]) -> str:
    """What a program prints.

    Raises:
        PeerError: it failed, with the end of what it said.
    """
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{words[0]}: did not end within {RUN_SECONDS} s") from error
    if done.returncode:
        raise PeerError(f"{words[0]}: exit status {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


@contextmanager
def serving(
    engine: WholeEngine, model: Path, *, slots: int, context: int, threads: int, log: Path
) -> Iterator[Served]:
    """The engine's server on a free port, until the block ends.

    Raises:
        PeerError: it ended, or did not get ready.
    """
    port = free_port()
    words = engine.serve_command(model, port=port, slots=slots, context=context, threads=threads)
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
    try:
        while not healthy(port):
            if process.poll() is not None or time.monotonic() - started > START_SECONDS:
                raise PeerError(f"{engine.name}: no server: {log.read_text()[-2000:]}")
            time.sleep(0.02)
        yield Served(f"http://127.0.0.1:{port}/v1", time.monotonic() - started, process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def healthy(port: int) -> bool:
    """Whether /health says 200."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return int(any_port.getsockname()[1])
