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
    detokenizer = Detokenizer(TOKENIZER, sampling.stop, skip_special_tokens)
    return [d async for d in text_deltas(engine.generate(request), detokenizer)]


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
