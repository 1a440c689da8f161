# SPDX-License-Identifier: Apache-2.0
"""Token events to text deltas, and streams merged, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from kt_runtime.core import EngineClosedError, Request, SamplingParams
from kt_runtime.text import Detokenizer
from kt_server.generation import GenerationError, TextDelta, interleave, text_deltas

from .fake_engine import END, TOKENIZER, FakeEngine


async def deltas_of(
    engine: FakeEngine, sampling: SamplingParams | None = None, skip_special_tokens: bool = True
) -> list[TextDelta]:
    sampling = sampling or SamplingParams()
    request = Request("r", (1, 2, 3), sampling)
    detokenizer = Detokenizer(
        TOKENIZER, sampling.stop, skip_special_tokens, min_tokens=sampling.min_tokens
    )
    return [d async for d in text_deltas(engine, request, detokenizer)]


async def test_only_the_last_delta_has_a_reason(engine: FakeEngine) -> None:
    deltas = await deltas_of(engine)
    assert "".join(d.text for d in deltas) == "Paris."
    assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
    last = deltas[-1]
    assert (last.finish_reason, last.num_prompt_tokens, last.num_generated_tokens) == ("stop", 3, 7)


async def test_held_back_text_comes_with_the_end(engine: FakeEngine) -> None:
    deltas = await deltas_of(engine, SamplingParams(stop=("is.!",)))
    assert deltas[-1].text == "is."
    assert deltas[-1].finish_reason == "stop"


async def test_a_stop_string_ends_the_request_as_stopped_in_the_engine_s_books(
    engine: FakeEngine,
) -> None:
    deltas = await deltas_of(engine, SamplingParams(stop=("ri",)))
    assert [(d.text, d.finish_reason) for d in deltas[-1:]] == [("", "stop")]
    assert engine.finished == {"stop": 1}


async def test_a_character_cut_off_by_the_limit_shows(engine: FakeEngine) -> None:
    engine.answer = "東"
    deltas = await deltas_of(engine, SamplingParams(max_tokens=2))
    assert [(d.text, d.finish_reason) for d in deltas] == [("\N{REPLACEMENT CHARACTER}", "length")]


async def test_the_end_token_is_never_text(engine: FakeEngine) -> None:
    deltas = await deltas_of(engine, skip_special_tokens=False)
    assert "".join(d.text for d in deltas) == "Paris."
    ignoring = SamplingParams(ignore_eos=True)
    deltas = await deltas_of(engine, ignoring, skip_special_tokens=False)
    assert "".join(d.text for d in deltas) == "Paris.<|end|>"
    assert TOKENIZER.decode([END]) == ""


def scored(deltas: list[TextDelta]) -> list[tuple[int, str]]:
    """Where each token's text begins, and its bytes."""
    return [
        (t.offset, TOKENIZER.token_bytes(t.logprobs.token_id).decode("latin-1"))
        for delta in deltas
        for t in delta.tokens
    ]


async def test_every_token_is_scored_once_in_the_delta_where_its_text_ends(
    engine: FakeEngine,
) -> None:
    engine.answer = "aé東b"
    deltas = await deltas_of(engine, SamplingParams(logprobs=0))
    assert [(d.text, len(d.tokens)) for d in deltas] == [
        ("a", 1),
        ("é", 2),
        ("東", 3),
        ("b", 1),
        ("", 1),  # the end token
    ]
    parts = "aé東b".encode().decode("latin-1")
    offsets = [0, 1, 1, 2, 2, 2, 3, 4]
    assert scored(deltas) == list(zip(offsets, [*parts, "<|end|>"], strict=True))
    assert not scored(await deltas_of(engine))


@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        (".", "Paris"),
        ("ris", "Pa"),
        ("Par", ""),
        ("is.!", "Paris.<end>"),
        ("é", "Paris."),
        ("!", "Paris.é"),
    ],
)
async def test_tokens_that_a_stop_string_cut_are_not_scored(
    engine: FakeEngine, stop: str, kept: str
) -> None:
    engine.answer = "Paris." if stop == "is.!" else "Paris.é!x"
    deltas = await deltas_of(engine, SamplingParams(logprobs=0, stop=(stop,)))
    said = "".join(part for _, part in scored(deltas))
    assert said.replace("<|end|>", "<end>") == kept.encode().decode("latin-1")


async def test_stop_strings_wait_for_min_tokens(engine: FakeEngine) -> None:
    engine.answer = "aXbXc"
    for min_tokens, text in ((0, "a"), (1, "a"), (2, "aXb"), (4, "aXbXc")):
        deltas = await deltas_of(engine, SamplingParams(stop=("X",), min_tokens=min_tokens))
        assert "".join(d.text for d in deltas) == text


async def test_prompt_logprobs_come_with_the_first_delta(engine: FakeEngine) -> None:
    for max_tokens in (0, 2):
        sampling = SamplingParams(prompt_logprobs=1, max_tokens=max_tokens)
        first, *others = await deltas_of(engine, sampling)
        assert first.prompt_logprobs is not None
        assert len(first.prompt_logprobs) == 3
        assert all(delta.prompt_logprobs is None for delta in others)


async def test_errors_and_aborts_raise(engine: FakeEngine) -> None:
    engine.fail_at = 3
    with pytest.raises(GenerationError, match="kernel fell over"):
        await deltas_of(engine)
    engine.fail_at = None
    engine.token_s = 1

    async def close_soon() -> None:
        await asyncio.sleep(0.02)
        engine.close("bye")

    closing = asyncio.create_task(close_soon())
    with pytest.raises(EngineClosedError, match="bye"):
        await deltas_of(engine)
    await closing


async def numbers(values: list[int], closed: list[int]) -> AsyncGenerator[int, None]:
    try:
        for value in values:
            await asyncio.sleep(0)
            if value < 0:
                raise ValueError("negative")
            yield value
    finally:
        closed.append(values[0])


async def test_interleave_yields_everything_with_its_index() -> None:
    closed: list[int] = []
    streams = [numbers([1, 2, 3], closed), numbers([10, 20], closed)]
    items = [item async for item in interleave(streams)]
    assert sorted(items) == [(0, 1), (0, 2), (0, 3), (1, 10), (1, 20)]
    assert [value for index, value in items if index == 0] == [1, 2, 3]
    assert sorted(closed) == [1, 10]


async def test_interleave_ends_all_with_the_first_error() -> None:
    closed: list[int] = []
    streams = [numbers([5, -1], closed), numbers(list(range(100, 200)), closed)]
    with pytest.raises(ValueError, match="negative"):
        async for _ in interleave(streams):
            pass
    assert sorted(closed) == [5, 100]


async def test_closing_interleave_closes_every_stream() -> None:
    closed: list[int] = []
    streams = [numbers(list(range(9)), closed), numbers(list(range(100, 109)), closed)]
    async with aclosing(interleave(streams)) as merged:
        async for _ in merged:
            break
    assert sorted(closed) == [0, 100]
