# SPDX-License-Identifier: Apache-2.0
"""The checks of a request that depend on it and the engine's settings alone. Not on what runs."""

from __future__ import annotations

from kt_runtime.core import ContextLengthError, InvalidFieldError, Request, is_whole


def check_request(
    request: Request, *, vocab_size: int, max_model_len: int, takes_priority: bool
) -> None:
    """Raises if an engine of these settings can never run the request.

    Raises:
        ContextLengthError: the prompt (and one token more) is longer than max_model_len.
        InvalidFieldError: a field has a value that it must not have.
        ValueError: anything else: `[engine.add] rule; got actual`.
    """

    def check(ok: bool, rule: str, got: object) -> None:
        if not ok:
            raise ValueError(f"[engine.add] {rule}; got {got!r}")

    ids = request.prompt_token_ids
    check(len(ids) > 0, "prompt_token_ids must hold at least one id", ids)
    # Not one check per id: prompts are long, and all of one type.
    others = set(map(type, ids)) - {int}
    names = ", ".join(kind.__name__ for kind in others)
    check(not others, "prompt_token_ids must be of type int", names)
    low, high = min(ids), max(ids)
    rule = f"prompt_token_ids must lie in [0, {vocab_size})"
    check(low >= 0 and high < vocab_size, rule, low if low < 0 else high)
    chunk_size = request.chunk_size
    chunk_ok = chunk_size is None or (is_whole(chunk_size) and chunk_size >= 1)
    check(chunk_ok, "chunk_size must be a whole number of at least 1", chunk_size)
    biased = max(request.sampling.logit_bias, default=0)
    if biased >= vocab_size:
        rule = f"ids must lie in [0, {vocab_size})"
        raise InvalidFieldError("engine.add", "logit_bias", rule, biased)
    check(is_whole(request.priority), "priority must be a whole number", request.priority)
    if request.priority != 0 and not takes_priority:
        rule = "must be 0 unless schedule_policy is 'priority'"
        raise InvalidFieldError("engine.add", "priority", rule, request.priority)
    num_tokens = len(ids) + int(request.generates)
    if num_tokens > max_model_len:
        what = "the prompt and one token of output" if request.generates else "the prompt"
        raise ContextLengthError(num_tokens, max_model_len, what)
