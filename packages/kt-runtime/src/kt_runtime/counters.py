# SPDX-License-Identifier: Apache-2.0
"""Counts what an engine did since its start, and the seconds it took. Decides nothing."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from kt_runtime.core import FinishReason
from kt_runtime.scheduler import Step

PHASES = ("prefill", "decode")
# Prompt tokens of a step that says what one costs. In steps of a few, what most of the time goes
# into (weights are read, threads are woken) would not have been spent again on each cached token:
# a step of one token takes 15 times as long per token as one of 200 (smolmoe, two CPUs).
_FEWEST_TOKENS = 64


class Counters:
    """Written by the stepping thread; readable from any."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._chunks: Counter[int] = Counter()
        self._finished: Counter[str] = Counter()
        self._phase_steps: Counter[str] = Counter()
        self._step_seconds = dict.fromkeys(PHASES, 0.0)
        self._forward_seconds = dict.fromkeys(PHASES, 0.0)
        self._token_s = math.inf  # of a prompt's token, in the fastest step that says it
        self._saved_s = 0.0
        self._num_unpriced = 0  # cached tokens from before any such step

    def scheduled(self, step: Step) -> None:
        """Requests that start or go back to the line."""
        self._counts["preemptions"] += step.num_preempted
        for sequence in step.started:
            self._counts["prompt"] += sequence.num_prompt_tokens
            self._counts["cached"] += sequence.num_cached_tokens
            self._num_unpriced += sequence.num_cached_tokens
        self._price()

    def computed(self, step: Step) -> None:
        """The chunks of a step whose forward succeeded."""
        for _, size in step.shares[step.work.num_decodes :]:
            self._counts["prefill"] += size
            self._chunks[1 << (size - 1).bit_length()] += 1

    def generated(self) -> None:
        """A token."""
        self._counts["generated"] += 1

    def finished(self, reason: FinishReason) -> None:
        """A request."""
        self._finished[reason] += 1

    def took(self, step: Step, seconds: float, forward_seconds: float) -> None:
        """How long a step took, and the forward in it."""
        phase = PHASES[step.work.num_prefill_tokens == 0]
        self._phase_steps[phase] += 1
        self._step_seconds[phase] += seconds
        self._forward_seconds[phase] += forward_seconds
        num_tokens = step.work.num_prefill_tokens
        if num_tokens >= _FEWEST_TOKENS and not step.work.num_decodes:
            self._token_s = min(self._token_s, forward_seconds / num_tokens)
            self._price()

    def _price(self) -> None:
        """Cached tokens would have taken as long as the fastest ones that were computed so far."""
        if self._token_s < math.inf:
            self._saved_s += self._num_unpriced * self._token_s
            self._num_unpriced = 0

    def snapshot(self) -> dict[str, Any]:
        """Fields of EngineStats, by name."""
        return {
            "phase_steps": {phase: self._phase_steps[phase] for phase in PHASES},
            "step_seconds": dict(self._step_seconds),
            "forward_seconds": dict(self._forward_seconds),
            "prompt_tokens": self._counts["prompt"],
            "cached_tokens": self._counts["cached"],
            "prefill_seconds_saved": self._saved_s,
            "generated_tokens": self._counts["generated"],
            "preemptions": self._counts["preemptions"],
            "prefill_tokens": self._counts["prefill"],
            "prefill_chunks": dict(self._chunks),
            "finished": dict(self._finished),
        }
