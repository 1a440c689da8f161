# SPDX-License-Identifier: Apache-2.0
"""Alternating runs and the statistics of their pairs: what makes a ratio of two engines mean
something on a machine whose speed drifts. Starts no process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from child import Child, Inputs, PeerError
from shapes import Shape
from weights import Expert, moe_layer

ROUND_SECONDS = 0.1  # of our kernel: long against one preemption, so that a median drops it
MAX_CALLS = 16
CHECKED_TOKENS = 8

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Ratio:
    """One ratio per round: median and quartiles."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Measurement:
    """One child at one batch.

    Attributes:
        seconds: per round, the median of its calls.
        experts_touched: mean number of different experts of one call.
        error: RMS of the difference to numpy over the RMS of the result.
    """

    num_tokens: int
    seconds: list[float]
    experts_touched: float
    error: float


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """Of two measurements whose rounds took place side by side.

    Raises:
        ValueError: different numbers of rounds, or none.
    """
    if not numerator or len(numerator) != len(denominator):
        raise ValueError(f"rounds must pair; got {len(numerator)} and {len(denominator)}")
    return spread(np.asarray(numerator) / np.asarray(denominator))


def spread(values: Sequence[float] | Array) -> Ratio:
    """Of one value per round."""
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return Ratio(median, low, high, len(values))


def check_inputs(
    shape: Shape, blocks: str, experts: list[Expert], num_tokens: int, path: Path
) -> Array:
    """Write the input file of a check; the right values of the last call's first rows."""
    inputs = Inputs.draw(shape, num_tokens, 2, seed=0)
    inputs.write(path)
    rows = slice(CHECKED_TOKENS)
    call = inputs.hidden[rows], inputs.ids[-1][rows], inputs.weights[-1][rows]
    return moe_layer(experts, blocks, shape.activation, *call)


def check(
    child: Child, max_error: float, inputs: Path, expected: Array, output: Path
) -> tuple[float, float]:
    """Run a child once and compare its first rows with the expected ones.

    Returns:
        The error, and the fastest call's seconds.

    Raises:
        PeerError: it computes something else.
    """
    seconds = child.run(inputs, output)
    actual = np.fromfile(output, np.float32)[: expected.size].reshape(expected.shape)
    error = float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))
    if not error <= max_error:  # also for NaN
        raise PeerError(
            f"{child.name}: is not the same layer: relative error {error:.3g}, "
            f"at most {max_error} is rounding"
        )
    return error, min(seconds)


def alternate(
    children: Sequence[Child],
    max_errors: Sequence[float],
    shape: Shape,
    blocks: str,
    experts: list[Expert],
    num_tokens: int,
    rounds: int,
    directory: Path,
    beside: Callable[[], None],
) -> list[Measurement]:
    """Every child computes the same calls in turn, in the other order every other round.

    Args:
        children: loaded; the first is the one that sets the number of calls of a round.
        max_errors: of each child's results.
        blocks: ggml type of the weight file.
        experts: of the weight file.
        directory: for the files of a call.
        beside: called in every round next to the first child's run.

    Returns:
        One per child, in their order.
    """
    calls, output = directory / "inputs", directory / "output"
    expected = check_inputs(shape, blocks, experts, num_tokens, calls)
    checks = [
        check(child, max_error, calls, expected, output)
        for child, max_error in zip(children, max_errors, strict=True)
    ]
    num_calls = int(np.clip(ROUND_SECONDS / checks[0][1], 1, MAX_CALLS))
    # The first of many calls wakes threads that slept, and does not count; in a call that fills a
    # round alone, waking is nothing.
    uncounted = 1 if num_calls > 1 else 0
    seconds: list[list[float]] = [[] for _ in children]
    touched = []
    for number in range(rounds):
        inputs = Inputs.draw(shape, num_tokens, uncounted + num_calls, seed=1 + number)
        inputs.write(calls)
        touched += [len(np.unique(ids)) for ids in inputs.ids[uncounted:]]
        order = range(len(children))
        for i in order if number % 2 == 0 else reversed(order):
            if i == 0:
                beside()
            seconds[i].append(float(np.median(children[i].run(calls, output)[uncounted:])))
    return [
        Measurement(num_tokens, times, float(np.mean(touched)), error)
        for times, (error, _) in zip(seconds, checks, strict=True)
    ]
