# SPDX-License-Identifier: Apache-2.0
"""`kt chat`: a conversation in the terminal with an engine in the same process. No HTTP."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from kt_runtime.config import EngineConfig
from kt_runtime.core import Request, SamplingParams
from kt_server.cli.loading import (
    KVMemoryOption,
    MaxModelLenOption,
    ModelArgument,
    NumThreadsOption,
    PackCacheOption,
    WeightFormatOption,
    load_model,
)

if TYPE_CHECKING:
    import asyncio

    from kt_runtime.text import ChatTemplate, Tokenizer
    from kt_server.generation import TextDelta
    from kt_server.protocols import EngineClient


class Conversation:
    """Messages so far, and the model that answers them.

    Args:
        engine: runs the model.
        tokenizer: the checkpoint's.
        chat_template: the checkpoint's.
        sampling: for every answer.
        system: the system message, or None for the template's own.
    """

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate,
        sampling: SamplingParams,
        system: str | None = None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._sampling = sampling
        self._system = system
        self._ids = itertools.count()
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    async def ask(self, question: str) -> AsyncGenerator[TextDelta, None]:
        """The answer as it comes. It joins the conversation when it is complete; a question whose
        answer was broken off does not.

        Raises:
            ValueError: the conversation does not suit the template, or no longer fits the context.
            GenerationError: the engine failed.
        """
        messages = [*self.messages, {"role": "user", "content": question}]
        prompt = self._tokenizer.encode(self._chat_template.render(messages))
        request = Request(f"chat-{next(self._ids)}", tuple(prompt), self._sampling)
        from kt_runtime.text import Detokenizer
        from kt_server.generation import text_deltas

        detokenizer = Detokenizer(self._tokenizer, self._sampling.stop)
        answer: list[str] = []
        async with aclosing(text_deltas(self._engine, request, detokenizer)) as deltas:
            async for delta in deltas:
                answer.append(delta.text)
                yield delta
        self.messages = [*messages, {"role": "assistant", "content": "".join(answer)}]


def chat(
    model: ModelArgument,
    question: Annotated[
        str | None, typer.Argument(help="Answer this and exit. Piped input is added to it.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal answers.")] = None,
    weight_format: WeightFormatOption = "native",
    max_model_len: MaxModelLenOption = None,
    kv_cpu_memory_gb: KVMemoryOption = 1.0,
    num_threads: NumThreadsOption = None,
    pack_cache: PackCacheOption = None,
) -> None:
    """Chat with MODEL in the terminal, or answer one QUESTION."""
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read().strip()
    question = as_utf8("\n\n".join(part for part in (question, piped) if part))
    interactive = not question and sys.stdin is not None and sys.stdin.isatty()
    if not question and not interactive:
        raise ValueError(
            "[chat] a question must come as an argument or through a pipe; got neither"
        )
    config = EngineConfig(
        weight_format=weight_format,
        max_model_len=max_model_len,
        kv_cpu_memory_gb=kv_cpu_memory_gb,
        num_threads=num_threads,
        pack_cache=pack_cache,
    )
    import asyncio

    loaded = load_model(model, config)
    with loaded.engine:
        if loaded.chat_template is None:
            raise ValueError(f"[chat] {loaded.path} must have a chat template; it has none")
        sampling = loaded.sampling_defaults.params(
            max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        conversation = Conversation(
            loaded.engine,
            loaded.tokenizer,
            loaded.chat_template,
            sampling,
            None if system is None else as_utf8(system),
        )
        with asyncio.Runner() as runner:
            if interactive:
                _converse(conversation, runner)
            else:
                runner.run(print_answer(conversation, question))


def as_utf8(text: str) -> str:
    """Bytes of a pipe or an argument that are no UTF-8, which Python hides in surrogates, become
    U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _converse(conversation: Conversation, runner: asyncio.Runner) -> None:
    """Ask and answer until end of input. Ctrl-C breaks off an answer, or leaves at the prompt."""
    print("Ctrl-C stops an answer, Ctrl-D leaves, /reset starts over.")
    while (question := _read_question(input)) is not None:
        if question == "/reset":
            conversation.reset()
            continue
        try:
            runner.run(print_answer(conversation, question))
        except KeyboardInterrupt:
            print(" [stopped]")
        except ValueError as error:
            print(f"{error}\n/reset starts over.")


def _read_question(read: Callable[[str], str]) -> str | None:
    """The next line that is not empty; None at the end of input."""
    try:
        while not (line := read("> ").strip()):
            pass
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return line


async def print_answer(conversation: Conversation, question: str) -> None:
    """Ask, and print the answer as it comes."""
    async with aclosing(conversation.ask(question)) as deltas:
        async for delta in deltas:
            print(delta.text, end="", flush=True)
    print()
