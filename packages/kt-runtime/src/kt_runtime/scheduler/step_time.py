# SPDX-License-Identifier: Apache-2.0
"""Predicts how long a step takes: a linear model of its work, probed and learned from every step.
It reads no clock.

    seconds = a + b * decodes + c * prefill tokens + d * experts touched + e * attended tokens

a is what a step costs at all (dense weights are read once, threads are woken); b and c are rows'
arithmetic, which differs between a replayed graph's single rows and chunks; d is the reading of
experts' weights from memory; e is attention, which grows along a prompt. None can be negative.

To this comes a margin for what the law does not know, so that 19 of 20 steps take no longer. Of
chunks far beyond all that were seen it says nothing: they may take for ever.

A row visits k of E experts in each layer. If rows chose independently, n rows would touch
E * (1 - (1 - k / E) ** n) different ones: k for one row, all of them for many. Real routers are
less even and touch fewer, by a factor that d absorbs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import mul

from kt_runtime.scheduler.step import StepWork

_NUM_TERMS = 5
# How much an observation counts after each later one: the last 50 make up the model, a second or
# two of decoding, so that it follows a machine whose other work comes and goes.
_FADING = 0.98
# An observation moves the model as if it had taken at most this many times, or at least this part
# of, what was predicted: a page fault or a paused machine is no news about the next step, but if
# steps stay that slow, each of them says so again.
_SURPRISE = 2.0
# The margin is the quantile of measured / predicted that this part of the steps with chunks stays
# below. It is found by moving up or down a little after each of them (Robbins and Monro, 1951), the
# same whatever a step took, so that a paused machine does not count for more than a slow step.
_IN_TIME = 0.95
_MARGIN_STEP = 0.02
_MAX_MARGIN = 1.5
# A probed step counts as this much of one just observed: enough to say what else nobody says, too
# little to hold the model where the machine no longer is.
_PROBED_WEIGHT = 0.2
# A step with chunks may have this many times as many prompt tokens as the largest seen, and attend
# to the square of that times as many. What a token costs may be unknown until then; it is not
# nothing.
_REACH = 4
# An observed step with chunks that goes this much beyond all others is as good as a probed one, and
# kept like those. Three or four of them lead from a page to a whole step.
_NEW = 2
# Observations weigh 1 / seconds ** 2, so that errors count in percent. Below this time a clock says
# nothing.
_SHORTEST_S = 1e-6
# Coordinate descent starts from the last solution and ends when no term moves predictions by more
# than a thousandth: a few rounds, and never more milliseconds than these take.
_ROUNDS = 100
_CLOSE = 1e-3
# Solving in every step would be waste where only decodes run and nobody asks.
_SOLVE_EVERY = 16


class StepTimeModel:
    """A `StepTimes` for one model on one machine. Not thread-safe: the stepping thread's.

    Least squares over all observations, each relative to the duration that the probed ones give it.
    Observations fade as others follow; probed ones never do, so that what has not been seen lately
    (a long chunk, say) keeps the duration it was probed with.

    Args:
        num_experts, top_k: routed experts of a layer, and how many of them a row visits; 0, 0 for a
            dense model.
        probed: steps that were measured, as by `probe`.
        page_size: tokens of a chunk that may be tried before any was seen.
    """

    def __init__(
        self,
        num_experts: int = 0,
        top_k: int = 0,
        probed: Iterable[tuple[StepWork, float]] = (),
        *,
        page_size: int = 16,
    ) -> None:
        self._num_experts = num_experts
        self._missed = 1.0 - top_k / num_experts if num_experts else 1.0  # by one row
        self._terms = [0.0] * _NUM_TERMS
        self._probed_terms = [0.0] * _NUM_TERMS
        self._probed = _Sums()
        self._recent = _Sums()
        self._most_prefill = page_size / _REACH
        self._most_attended = (page_size / _REACH) ** 2
        self._margin = 1.0
        self._num_unsolved = 0
        for work, seconds in probed:
            self.probe(work, seconds)

    def seconds(self, work: StepWork) -> float:
        """How long such a step will take at most, 19 times of 20; infinity if its chunks go far
        beyond what was seen."""
        if work.num_prefill_tokens and self._goes_beyond(work, _REACH):
            return math.inf
        if self._num_unsolved:
            self._solve()
        seconds: float = sum(map(mul, self._terms, self._features(work)))
        return self._margin * seconds

    def probe(self, work: StepWork, seconds: float) -> None:
        """Such a step took that long when nothing else was going on."""
        self._keep(self._features(work), seconds)
        self._see(work)
        self._solve()

    def observe(self, work: StepWork, seconds: float) -> None:
        """Such a step took that long."""
        features = self._features(work)
        if work.num_prefill_tokens and self._goes_beyond(work, _NEW):
            self._keep(features, seconds)
        else:
            seconds = self._believable(work, features, seconds)
        self._see(work)
        reference = sum(map(mul, self._probed_terms, features)) or seconds
        self._recent.fade(_FADING)
        self._recent.add(features, seconds, 1.0 / _square(reference))
        self._num_unsolved += 1
        if self._num_unsolved == _SOLVE_EVERY:
            self._solve()

    def _goes_beyond(self, work: StepWork, factor: float) -> bool:
        """Whether there is this much more of anything in it than in all steps seen."""
        return (
            work.num_prefill_tokens > factor * self._most_prefill
            or work.num_attended_tokens > factor**2 * self._most_attended
        )

    def _see(self, work: StepWork) -> None:
        self._most_prefill = max(self._most_prefill, work.num_prefill_tokens)
        self._most_attended = max(self._most_attended, work.num_attended_tokens)

    def _keep(self, features: tuple[float, ...], seconds: float) -> None:
        """For good."""
        self._probed.add(features, seconds, _PROBED_WEIGHT / _square(seconds))
        _descend(self._probed.gram, self._probed.moment, self._probed_terms)

    def _believable(self, work: StepWork, features: tuple[float, ...], seconds: float) -> float:
        """The part of a surprise that counts; moves the margin."""
        predicted: float = sum(map(mul, self._terms, features))
        if predicted == 0:
            return seconds
        if work.num_prefill_tokens:
            late = float(seconds > predicted * self._margin)
            margin = self._margin + _MARGIN_STEP * (late - (1 - _IN_TIME))
            self._margin = min(max(margin, 1.0), _MAX_MARGIN)
        return min(max(seconds, predicted / _SURPRISE), predicted * _SURPRISE)

    def _features(self, work: StepWork) -> tuple[float, ...]:
        touched = self._num_experts * (1.0 - self._missed**work.num_rows)
        return (
            1.0,
            work.num_decodes,
            work.num_prefill_tokens,
            touched,
            work.num_attended_tokens,
        )

    def _solve(self) -> None:
        self._num_unsolved = 0
        pairs = zip(self._probed.gram, self._recent.gram, strict=True)
        gram = [[p + r for p, r in zip(*rows, strict=True)] for rows in pairs]
        moments = zip(self._probed.moment, self._recent.moment, strict=True)
        _descend(gram, [p + r for p, r in moments], self._terms)


def _descend(gram: Sequence[Sequence[float]], moment: Sequence[float], terms: list[float]) -> None:
    """Minimise the squares over terms >= 0, one term at a time."""
    for _ in range(_ROUNDS):
        moved = 0.0
        for i, row in enumerate(gram):
            if row[i] == 0.0:
                continue  # nothing seen had any of it
            rest = moment[i] - sum(map(mul, row, terms)) + row[i] * terms[i]
            term = max(0.0, rest / row[i])
            moved = max(moved, row[i] * (term - terms[i]) ** 2)
            terms[i] = term
        if moved < _CLOSE**2:
            return


def _square(seconds: float) -> float:
    return max(seconds, _SHORTEST_S) ** 2


class _Sums:
    """What least squares needs of observations: weighted sums of products."""

    def __init__(self) -> None:
        self.gram = [[0.0] * _NUM_TERMS for _ in range(_NUM_TERMS)]
        self.moment = [0.0] * _NUM_TERMS

    def add(self, features: tuple[float, ...], seconds: float, weight: float) -> None:
        """One observation."""
        for i, feature in enumerate(features):
            scaled = weight * feature
            self.moment[i] += scaled * seconds
            row = self.gram[i]
            for j, other in enumerate(features):
                row[j] += scaled * other

    def fade(self, factor: float) -> None:
        """Let all observations so far count less."""
        self.moment = [factor * value for value in self.moment]
        self.gram = [[factor * value for value in row] for row in self.gram]
