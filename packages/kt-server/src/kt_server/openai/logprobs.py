# SPDX-License-Identifier: Apache-2.0
"""Log probabilities in OpenAI's two shapes: objects per token (chat), parallel lists
(completions)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kt_runtime.core import TokenLogprobs
from kt_runtime.text import Detokenizer, Tokenizer
from kt_server.generation import ScoredToken
from kt_server.openai.types import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    TopLogprob,
)

# What OpenAI reports for a token that cannot be: JSON has no infinity.
_LEAST = -9999.0


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
    """A token's text, or `bytes:\\x…` where its bytes are not whole characters: OpenAI's way to
    keep such tokens apart."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(tokenizer: Tokenizer, tokens: Iterable[ScoredToken]) -> ChatLogprobs:
    """Of the tokens of an answer or a chunk."""

    def entry(token_id: int, logprob: float) -> TopLogprob:
        return TopLogprob(
            token=token_name(tokenizer, token_id),
            logprob=max(logprob, _LEAST),
            bytes=list(tokenizer.token_bytes(token_id)),
        )

    content = []
    for item in tokens:
        own = entry(item.logprobs.token_id, item.logprobs.logprob)
        top = [entry(token_id, logprob) for token_id, logprob in item.logprobs.top]
        content.append(
            ChatTokenLogprob(
                token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top
            )
        )
    return ChatLogprobs(content=content)


def completion_logprobs(
    tokenizer: Tokenizer, tokens: Iterable[ScoredToken], offset: int
) -> CompletionLogprobs:
    """Of the tokens of an answer or a chunk; `offset` characters of the prompt are before it."""
    logprobs = no_logprobs()
    for token in tokens:
        _append(logprobs, tokenizer, offset + token.offset, token.logprobs)
    return logprobs


def prompt_logprobs(
    tokenizer: Tokenizer,
    text: str,
    token_ids: Sequence[int],
    scores: Sequence[TokenLogprobs | None],
) -> CompletionLogprobs:
    """Of a prompt's tokens.

    Args:
        tokenizer: whose tokens they are.
        text: the prompt as it is shown. Tokens that are not in it, such as a beginning-of-text
            token that the tokenizer added, take no characters.
        token_ids: the prompt's.
        scores: one per token; None for the first.
    """
    logprobs = no_logprobs()
    pieces = Detokenizer(tokenizer, skip_special_tokens=False)
    offset = 0
    for token_id, score in zip(token_ids, scores, strict=True):
        if score is None:
            logprobs.text_offset.append(offset)
            logprobs.tokens.append(token_name(tokenizer, token_id))
            logprobs.token_logprobs.append(None)
            logprobs.top_logprobs.append(None)
        else:
            _append(logprobs, tokenizer, offset, score)
        piece = pieces.feed(token_id)
        if text.startswith(piece, offset):
            offset += len(piece)
    return logprobs


def no_logprobs() -> CompletionLogprobs:
    """Of no tokens, to be extended."""
    return CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])


def extend(logprobs: CompletionLogprobs, more: CompletionLogprobs) -> None:
    """Append what comes after."""
    logprobs.text_offset += more.text_offset
    logprobs.token_logprobs += more.token_logprobs
    logprobs.tokens += more.tokens
    logprobs.top_logprobs += more.top_logprobs


def _append(
    logprobs: CompletionLogprobs, tokenizer: Tokenizer, offset: int, score: TokenLogprobs
) -> None:
    name = token_name(tokenizer, score.token_id)
    top: dict[str, float] = {}
    # Two ids may have one text: the more probable one is reported.
    for token_id, logprob in score.top:
        top.setdefault(token_name(tokenizer, token_id), max(logprob, _LEAST))
    logprob = max(score.logprob, _LEAST)
    top.setdefault(name, logprob)
    logprobs.text_offset.append(offset)
    logprobs.token_logprobs.append(logprob)
    logprobs.tokens.append(name)
    logprobs.top_logprobs.append(top)
