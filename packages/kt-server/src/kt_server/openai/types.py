# SPDX-License-Identifier: Apache-2.0
"""OpenAI's wire types, validated while decoding. Field names are theirs; no behaviour here.

Fields that a request may carry and that are not listed are ignored: clients send many. Those that
would change the answer if they were honoured are listed as unsupported and refused by requests.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from kt_runtime.core import MAX_LOGPROBS

MaxTokens = Annotated[int, Meta(ge=1)]
Unit = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
NumLogprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]


class StreamOptions(Struct, kw_only=True):
    """How a stream is reported."""

    include_usage: bool | None = None


class GenerationRequest(Struct, kw_only=True):
    """What chat completions and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: (
        Annotated[str, Meta(min_length=1)]
        | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=4)]
        | None
    ) = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[int, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    # Not OpenAI's, but what servers for open models have in common.
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Unit | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    cache_salt: str | None = None  # divides the cached prefixes of one API key
    repetition_penalty: float | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    priority: int | None = None  # lower is served first; refused under first come, first served
    # Known and unsupported: see requests.UNSUPPORTED for the values that change nothing.
    n: Any = None
    best_of: Any = None
    prompt_logprobs: Any = None
    bad_words: Any = None
    allowed_token_ids: Any = None
    include_stop_str_in_output: Any = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    use_beam_search: Any = None
    truncate_prompt_tokens: Any = None


class ContentPart(Struct, kw_only=True):
    """One part of a message; only text is supported."""

    type: str
    text: str | None = None


class ChatMessage(Struct, kw_only=True):
    """One message of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: Any = None
    function_call: Any = None


class ChatCompletionRequest(GenerationRequest, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Known and unsupported.
    tools: Any = None
    functions: Any = None
    modalities: Any = None
    audio: Any = None
    continue_final_message: Any = None
    chat_template: Any = None
    documents: Any = None


class CompletionRequest(GenerationRequest, kw_only=True):
    """POST /v1/completions. `prompt`: a text, texts, token ids, or lists of token ids."""

    prompt: str | list[str | int | list[int]]
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    logprobs: NumLogprobs | None = None
    echo: bool | None = None
    # Known and unsupported.
    suffix: Any = None


class PromptTokensDetails(Struct, kw_only=True):
    """Where the prompt's tokens came from."""

    cached_tokens: int


class Usage(Struct, kw_only=True):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


FinishReason = Literal["stop", "length"]


class AssistantMessage(Struct, kw_only=True):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class TopLogprob(Struct, kw_only=True):
    """A token and its log probability. `token` is its text, or bytes:\\x… where it is not whole
    characters; `bytes` is exact."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TopLogprob, kw_only=True):
    """A token of the answer, with the most probable ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, kw_only=True):
    """Log probabilities of an answer's tokens."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class ChatChoice(Struct, kw_only=True):
    """The one answer of a chat completion."""

    index: int = 0
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(Struct, kw_only=True):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str


class ChatDelta(Struct, kw_only=True):
    """What a chunk adds to the answer."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct, kw_only=True):
    """The one answer, in part."""

    index: int = 0
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Struct, kw_only=True):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str


class CompletionLogprobs(Struct, kw_only=True):
    """Log probabilities of a text's tokens, in parallel lists. A prompt's first token has none."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Struct, kw_only=True):
    """The text that follows one prompt, whole or in part."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None


class Completion(Struct, kw_only=True):
    """Answer of POST /v1/completions, and each event of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str


class Model(Struct, kw_only=True):
    """The model that is served. `max_model_len` is what vLLM's clients read."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "kt"
    max_model_len: int


class ModelList(Struct, kw_only=True):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]
