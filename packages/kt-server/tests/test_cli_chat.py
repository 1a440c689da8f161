# SPDX-License-Identifier: Apache-2.0
"""`kt chat`: one question, piped text, a conversation. The engine is a fake."""

from __future__ import annotations

import io
from contextlib import aclosing
from pathlib import Path

import pytest

from kt_runtime.core import SamplingParams
from kt_server.cli import chat as chat_module
from kt_server.cli import run as run_module
from kt_server.cli.chat import Conversation
from kt_server.cli.loading import LoadedModel
from kt_server.sampling import SamplingDefaults

from .fake_engine import TEMPLATE, TOKENIZER, FakeEngine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def loaded(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """kt chat gets the fake engine instead of a loaded model."""
    model = LoadedModel(Path("x"), engine, TOKENIZER, TEMPLATE, SamplingDefaults(temperature=0.5))
    monkeypatch.setattr(chat_module, "load_model", lambda name, config: model)
    return engine


def prompts(engine: FakeEngine) -> list[str]:
    return [
        TOKENIZER.decode(request.prompt_token_ids, skip_special_tokens=False)
        for request in engine.requests
    ]


async def ask(conversation: Conversation, question: str) -> str:
    return "".join([delta.text async for delta in conversation.ask(question)])


async def test_a_conversation_remembers(engine: FakeEngine) -> None:
    conversation = Conversation(engine, TOKENIZER, TEMPLATE, SamplingParams(), system="be brief")
    assert await ask(conversation, "Where?") == "Paris."
    await ask(conversation, "Sure?")
    assert prompts(engine)[1] == (
        "<|system|>be brief<|user|>Where?<|assistant|>Paris.<|user|>Sure?<|assistant|>"
    )
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "be brief"}]


async def test_a_broken_off_answer_is_forgotten(engine: FakeEngine) -> None:
    conversation = Conversation(engine, TOKENIZER, TEMPLATE, SamplingParams())
    async with aclosing(conversation.ask("Where?")) as deltas:
        async for _ in deltas:
            break
    assert conversation.messages == []
    assert engine.finished == {"abort": 1}


def test_one_question(
    loaded: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    chat_module.chat("x", "Where?", max_tokens=3, seed=5)
    assert capsys.readouterr().out == "Par\n"
    sampling = loaded.requests[0].sampling
    assert (sampling.max_tokens, sampling.seed, sampling.temperature) == (3, 5, 0.5)
    assert loaded.closed_reason is not None


def test_piped_text_joins_the_question(
    loaded: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("some text\n"))
    chat_module.chat("x", "Summarise:")
    assert capsys.readouterr().out == "Paris.\n"
    assert prompts(loaded) == ["<|user|>Summarise:\n\nsome text<|assistant|>"]


def test_piped_bytes_that_are_no_text_are_marked(
    loaded: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8", errors="surrogateescape")
    monkeypatch.setattr("sys.stdin", pipe)
    chat_module.chat("x")
    assert prompts(loaded) == ["<|user|>caf\N{REPLACEMENT CHARACTER}<|assistant|>"]


def test_so_are_those_of_the_system_message(
    loaded: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    chat_module.chat("x", "hi", system="caf\udce9")
    assert prompts(loaded) == ["<|system|>caf\N{REPLACEMENT CHARACTER}<|user|>hi<|assistant|>"]


def test_and_of_the_prompt_of_kt_run(loaded: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "load_model", chat_module.load_model)
    run_module.run("x", "caf\udce9")
    assert prompts(loaded) == ["<|user|>caf\N{REPLACEMENT CHARACTER}<|assistant|>"]


def test_an_interactive_conversation(
    loaded: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    lines = iter(["Where?", "", "refuse", "/reset", "Again?"])

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None  # Ctrl-D

    monkeypatch.setattr("builtins.input", read)
    chat_module.chat("x")
    out = capsys.readouterr().out
    assert out.count("Paris.") == 2
    assert "no refusing" in out  # the template's objection does not end the conversation
    assert prompts(loaded)[-1] == "<|user|>Again?<|assistant|>"


def test_nothing_to_ask_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(ValueError, match=r"\[chat\] a question must come"):
        chat_module.chat("x")
