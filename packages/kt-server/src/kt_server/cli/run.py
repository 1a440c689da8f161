# SPDX-License-Identifier: Apache-2.0
"""`kt run`: one prompt, one answer on stdout. Conversations are chat.py."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated

import typer

from kt_runtime.config import EngineConfig
from kt_runtime.core import Request, SamplingParams
from kt_server.cli.chat import Conversation, as_utf8, print_answer
from kt_server.cli.loading import (
    KVMemoryOption,
    LoadedModel,
    MaxModelLenOption,
    ModelArgument,
    NumThreadsOption,
    PackCacheOption,
    WeightFormatOption,
    load_model,
)


def run(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="A question, or with --raw a text to continue.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text, without the model's chat template.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal answers.")] = None,
    weight_format: WeightFormatOption = "native",
    max_model_len: MaxModelLenOption = None,
    kv_cpu_memory_gb: KVMemoryOption = 1.0,
    num_threads: NumThreadsOption = None,
    pack_cache: PackCacheOption = None,
) -> None:
    """Print MODEL's answer to PROMPT as it comes. A model without chat template continues it."""
    config = EngineConfig(
        weight_format=weight_format,
        max_model_len=max_model_len,
        kv_cpu_memory_gb=kv_cpu_memory_gb,
        num_threads=num_threads,
        pack_cache=pack_cache,
    )
    import asyncio

    prompt = as_utf8(prompt)
    loaded = load_model(model, config)
    with loaded.engine:
        sampling = loaded.sampling_defaults.params(
            max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        if raw or loaded.chat_template is None:
            asyncio.run(_print_continuation(loaded, prompt, sampling))
            return
        conversation = Conversation(loaded.engine, loaded.tokenizer, loaded.chat_template, sampling)
        asyncio.run(print_answer(conversation, prompt))


async def _print_continuation(loaded: LoadedModel, text: str, sampling: SamplingParams) -> None:
    from kt_runtime.text import Detokenizer
    from kt_server.generation import text_deltas

    ids = loaded.tokenizer.encode(text, add_special_tokens=True)
    request = Request("run", tuple(ids), sampling)
    detokenizer = Detokenizer(loaded.tokenizer, sampling.stop)
    async with aclosing(text_deltas(loaded.engine, request, detokenizer)) as deltas:
        async for delta in deltas:
            print(delta.text, end="", flush=True)
    print()
