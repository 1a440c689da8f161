# SPDX-License-Identifier: Apache-2.0
"""Alternating runs and the statistics of their pairs: what makes a ratio of two engines mean
something on a machine whose speed drifts. Starts no process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from child import Child, Inputs, PeerError
from shapes import Format, Shape
from weights import Expert, moe_layer

ROUND_SECONDS = 0.2  # of our kernel: long against one preemption, so that a median drops it
MAX_CALLS = 32
CHECKED_TOKENS = 8


@dataclass(frozen=True)
class Ratio:
    """Of paired rounds: median and quartiles."""

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
    ratios = np.asarray(numerator) / np.asarray(denominator)
    low, median, high = np.percentile(ratios, [25, 50, 75]).tolist()
    return Ratio(median, low, high, len(ratios))


def check(
    child: Child, weight_format: Format, experts: list[Expert], inputs: Inputs, directory: Path
) -> tuple[float, float]:
    """Run a child once and compare its first rows with numpy.

    Returns:
        The error, and the fastest call's seconds.

    Raises:
        PeerError: it computes something else.
    """
    calls, output = directory / "inputs", directory / "output"
    inputs.write(calls)
    seconds = child.run(calls, output)
    rows = slice(CHECKED_TOKENS)
    expected = moe_layer(
        experts,
        weight_format.blocks,
        inputs.hidden[rows],
        inputs.ids[-1][rows],
        inputs.weights[-1][rows],
    )
    actual = np.fromfile(output, np.float32).reshape(inputs.hidden.shape)[rows]
    error = float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))
    if not error <= weight_format.max_error:  # also for NaN
        raise PeerError(
            f"{child.name}: is not the same layer: relative error {error:.3g}, "
            f"at most {weight_format.max_error} is rounding"
        )
    return error, min(seconds)


def alternate(
    children: Sequence[Child],
    shape: Shape,
    weight_format: Format,
    experts: list[Expert],
    num_tokens: int,
    rounds: int,
    directory: Path,
) -> list[Measurement]:
    """Every child computes the same calls in turn, in the other order every other round.

    Args:
        children: loaded; the first is the one that sets the number of calls of a round.
        experts: of the weight file.
        directory: for the files of a call.

    Returns:
        One per child, in their order.
    """
    first = Inputs.draw(shape, num_tokens, 2, seed=0)
    checks = [check(child, weight_format, experts, first, directory) for child in children]
    num_calls = int(np.clip(ROUND_SECONDS / checks[0][1], 1, MAX_CALLS))
    seconds: list[list[float]] = [[] for _ in children]
    touched = []
    calls, output = directory / "inputs", directory / "output"
    for number in range(rounds):
        inputs = Inputs.draw(shape, num_tokens, 1 + num_calls, seed=1 + number)
        inputs.write(calls)
        touched += [len(np.unique(ids)) for ids in inputs.ids[1:]]
        order = range(len(children))
        for i in order if number % 2 == 0 else reversed(order):
            # The first call wakes threads that slept; it does not count.
            seconds[i].append(float(np.median(children[i].run(calls, output)[1:])))
    return [
        Measurement(num_tokens, times, float(np.mean(touched)), error)
        for times, (error, _) in zip(seconds, checks, strict=True)
    ]
