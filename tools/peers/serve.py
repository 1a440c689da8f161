# SPDX-License-Identifier: Apache-2.0
"""The child's side of the protocol of child.py, for peers that are Python modules."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from child import Inputs
from shapes import Shape
from weights import Expert, read_weights

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Load:
    """What `load` says, its weight file opened: expert e is `experts[e % len(experts)]`."""

    shape: Shape
    blocks: str
    experts: list[Expert]
    max_tokens: int
    num_threads: int


class Engine(Protocol):
    """What a peer implements. Only `compute` is timed."""

    def load(self, load: Load) -> tuple[int, str]:
        """Make the layers; stored bytes of one expert, and a line that says what will run."""

    def prepare(self, hidden: Array, ids: Array, weights: Array) -> None:
        """Take the next call's arrays: (tokens, hidden_size) float32, (tokens, top_k) int32 and
        float32.
        """

    def compute(self, layer: int) -> None:
        """The call."""

    def result(self) -> Array:
        """(tokens, hidden_size) float32 of the last call."""


def serve(engine: Engine) -> None:
    """Answer until the input ends. What the peer itself prints to stdout is dropped."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for line in sys.stdin:
        try:
            answers.write(answer(engine, line.split()) + "\n")
        except Exception as error:  # the parent reports it and goes on or not
            answers.write(f"error {type(error).__name__}: {error}".replace("\n", " ") + "\n")


def answer(engine: Engine, words: list[str]) -> str:
    """One line's answer."""
    command, *rest = words
    if command == "load":
        blocks, activation, *numbers, file_name = rest
        biases, experts, hidden, inner, top_k, layers, max_tokens, threads = map(int, numbers)
        shape = Shape("", experts, hidden, inner, top_k, layers, activation, bool(biases))
        file = Path(file_name)
        load = Load(shape, blocks, read_weights(file, shape, blocks), max_tokens, threads)
        size, description = engine.load(load)
        return f"ready {size} {description}"
    if command == "run":
        seconds = run(engine, Inputs.read(Path(rest[0])))
        engine.result().astype(np.float32, copy=False).tofile(rest[1])
        return "seconds " + " ".join(map(str, seconds))
    raise ValueError(f"unknown command {command}")


def run(engine: Engine, inputs: Inputs) -> list[float]:
    """Seconds of each call."""
    seconds = []
    for call, (ids, weights) in enumerate(zip(inputs.ids, inputs.weights, strict=True)):
        engine.prepare(inputs.hidden, ids, weights)
        started = time.perf_counter()
        engine.compute(call)
        seconds.append(time.perf_counter() - started)
    return seconds
