# SPDX-License-Identifier: Apache-2.0
"""A peer as a child process, and the files that calls are passed in. Runs one only while asked.

Protocol, one line each way, words separated by blanks:

    load BLOCKS ACTIVATION BIASES EXPERTS HIDDEN INTERMEDIATE TOP_K LAYERS MAX_TOKENS THREADS FILE
        ready BYTES_PER_EXPERT free text: what runs
    run INPUTS OUTPUT
        seconds S S ...          one per call of the input file; the last result is in OUTPUT
    anything that fails
        error free text

INPUTS: int32 tokens, top_k, hidden_size, calls; float32 hidden (tokens, hidden_size); int32 ids
(calls, tokens, top_k); float32 routing weights (calls, tokens, top_k). OUTPUT: float32 (tokens,
hidden_size). Call number i computes layer i modulo LAYERS.
"""

from __future__ import annotations

import ctypes
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shapes import Shape

Array = np.ndarray[Any, Any]
LOAD_SECONDS = 900  # packing gigabytes on a busy machine
RUN_SECONDS = 600


PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl  # found here: between fork and exec nothing may allocate


def _die_with_parent() -> None:
    """A stopped process would not notice that its input ended, and keep its gigabytes for ever."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class PeerError(Exception):
    """A peer that cannot do what it was asked; the message says which and why."""


def exit_status(action: Callable[[], None]) -> int:
    """Of a tool that does this: 0; 1 where a peer failed, which is then said; 130 after Ctrl-C."""
    try:
        action()
    except PeerError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


@dataclass(frozen=True)
class Inputs:
    """The calls of one `run`: hidden (tokens, hidden_size), ids and weights (calls, tokens,
    top_k).
    """

    hidden: Array
    ids: Array
    weights: Array

    @classmethod
    def draw(cls, shape: Shape, num_tokens: int, num_calls: int, seed: int) -> Inputs:
        """Normal activations and uniform routing, drawn for each call."""
        rng = np.random.default_rng(seed)
        slots = (num_calls, num_tokens, shape.top_k)
        ids = rng.random((num_calls, num_tokens, shape.num_experts)).argsort(-1)
        weights = rng.random(slots, np.float32)
        return cls(
            rng.standard_normal((num_tokens, shape.hidden_size), np.float32),
            np.ascontiguousarray(ids[..., : shape.top_k], np.int32),
            weights / weights.sum(-1, keepdims=True),
        )

    def write(self, path: Path) -> None:
        """As `INPUTS` of the protocol."""
        calls, tokens, top_k = self.ids.shape
        with path.open("wb") as file:
            np.array([tokens, top_k, self.hidden.shape[1], calls], np.int32).tofile(file)
            for array in (self.hidden, self.ids, self.weights):
                array.tofile(file)

    @classmethod
    def read(cls, path: Path) -> Inputs:
        """The inverse of `write`."""
        data = np.fromfile(path, np.int32)
        tokens, top_k, width, calls = data[:4].tolist()
        hidden, ids, weights = np.split(
            data[4:], np.cumsum([tokens * width, calls * tokens * top_k])
        )
        slots = (calls, tokens, top_k)
        return cls(
            hidden.view(np.float32).reshape(tokens, width),
            ids.reshape(slots),
            weights.view(np.float32).reshape(slots),
        )


class Child:
    """One peer's process, stopped (SIGSTOP) whenever it is not asked anything: a peer whose threads
    spin while idle would otherwise slow down the others.

    Raises:
        PeerError: the process cannot be started.
    """

    def __init__(self, name: str, command: Sequence[str]):
        self.name = name
        self.bytes_per_expert = 0
        self.description = ""
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            raise PeerError(f"{name}: {error}") from error
        self._process.send_signal(signal.SIGSTOP)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def load(
        self, shape: Shape, blocks: str, weights: Path, *, max_tokens: int, num_threads: int
    ) -> None:
        """Give it the layer; sets `bytes_per_expert` and `description`."""
        layer = (
            shape.activation,
            int(shape.biases),
            shape.num_experts,
            shape.hidden_size,
            shape.intermediate_size,
            shape.top_k,
            shape.num_layers,
        )
        words = ("load", blocks, *layer, max_tokens, num_threads, weights)
        size, _, self.description = self._ask("ready", LOAD_SECONDS, *words).partition(" ")
        self.bytes_per_expert = int(size)

    def run(self, inputs: Path, output: Path) -> list[float]:
        """Seconds of each call of an input file; the last result is then in `output`."""
        return [float(s) for s in self._ask("seconds", RUN_SECONDS, "run", inputs, output).split()]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    @contextmanager
    def _awake(self) -> Iterator[None]:
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def _ask(self, expected: str, seconds: float, *words: object) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            with self._awake():
                stdin.write(" ".join(map(str, words)) + "\n")
                ready, _, _ = select.select([stdout], [], [], seconds)
                answer = stdout.readline() if ready else f"error no answer within {seconds} s"
        except BrokenPipeError:
            answer = ""
        kind, _, text = answer.strip().partition(" ")
        if kind != expected:
            reason = text if kind == "error" else f"it ended, or said {answer!r}"
            raise PeerError(f"{self.name}: {words[0]}: {reason}")
        return text
