# SPDX-License-Identifier: Apache-2.0
"""Sequence: a request's progress. Phases are derived from counters, never stored beside them."""

from __future__ import annotations

from array import array
from collections.abc import Container
from typing import NamedTuple

from kt_runtime.core import FinishReason, Request
from kt_runtime.protocols import PageTable


class Sequence:
    """A request in flight. Owned by the engine's stepping thread.

    Waiting while it has no page table; loading while stored KV is on its way into its pages; then
    it prefills while more than its newest token is left
    to compute; then it decodes, with exactly that one left before each step. A preempted sequence
    waits again and prefills prompt and output so far: what it said stays said.

    Attributes:
        request: what was asked.
        order: (priority, position in the order of arrival): lower ones are served first.
        seed: key of its random numbers.
        max_num_tokens: prompt and output end here at the latest.
        token_ids: prompt and output so far (int32 array: cheap to slice and to hand to numpy).
        num_computed_tokens: how many of token_ids have their KV in pages.
        num_cached_tokens: prompt tokens whose KV was reused when it first started.
        num_preemptions: how often it gave its pages to an older one.
        page_table: its pages; None while it waits.
        ended: nothing more is computed for it.
    """

    __slots__ = (
        "ended",
        "max_num_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "order",
        "page_table",
        "request",
        "seed",
        "token_ids",
    )

    def __init__(self, request: Request, *, arrival: int, seed: int, max_model_len: int) -> None:
        num_prompt_tokens = len(request.prompt_token_ids)
        longest = max_model_len
        if not request.generates:
            longest = num_prompt_tokens
        elif request.sampling.max_tokens is not None:
            longest = min(longest, num_prompt_tokens + request.sampling.max_tokens)
        self.request = request
        self.order = (request.priority, arrival)
        self.seed = seed
        self.max_num_tokens = longest
        self.token_ids = array("i", request.prompt_token_ids)
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.page_table: PageTable | None = None
        self.ended = False

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def num_generated_tokens(self) -> int:
        """Tokens of the output so far."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens known but not computed."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_kv_tokens(self) -> int:
        """Most tokens whose KV will ever be written: the last generated one is never computed."""
        return max(self.num_prompt_tokens, self.max_num_tokens - 1)

    @property
    def is_loading(self) -> bool:
        """Whether stored KV is on its way into its pages: nothing of it can be computed yet."""
        table = self.page_table  # which may be taken away while another thread asks
        return table is not None and table.is_loading

    @property
    def is_decoding(self) -> bool:
        """Whether its next step computes the token it generated last, and nothing else."""
        return self.num_generated_tokens > 0 and self.num_remaining_tokens == 1

    def finish_reason(self, eos_token_ids: Container[int]) -> FinishReason | None:
        """Why it ends with its newest token, if it does. Asked after each generated token."""
        newest, sampling = self.token_ids[-1], self.request.sampling
        if newest in sampling.stop_token_ids:
            return "stop"
        if newest in eos_token_ids and not sampling.ignore_eos:
            return "stop"
        if self.num_tokens >= self.max_num_tokens:
            return "length"
        return None


class ScheduledSequence(NamedTuple):
    """One sequence's share of a step: its next num_new_tokens uncomputed tokens."""

    sequence: Sequence
    num_new_tokens: int

    @property
    def completes(self) -> bool:
        """Whether all known tokens are computed after this step, so that its last row is
        sampled."""
        return self.num_new_tokens == self.sequence.num_remaining_tokens
