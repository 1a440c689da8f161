# SPDX-License-Identifier: Apache-2.0
"""KV pages that outlive the server: what the next one reuses, for whom, and what it says then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import openai
import pytest

from .conftest import MODEL, Server, start_server

pytestmark = pytest.mark.e2e

SHARED = "You know the rivers of Europe: " + " ".join(
    f"river {i} flows through {i % 7 + 1} countries and is {i * 37 % 900 + 100} km long;"
    for i in range(40)
)


class Answer(NamedTuple):
    text: str
    prompt_tokens: int
    cached_tokens: int


def ask(server: Server, key: str, question: str = "Which river is the longest?") -> Answer:
    """The streamed answer and the usage in its last chunk."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
    messages = [{"role": "system", "content": SHARED}, {"role": "user", "content": question}]
    with client:
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=messages,
                temperature=0,
                max_tokens=12,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        whole = client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_tokens=12
        )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert whole.choices[0].message.content == text
    # Asked again at once, all but what follows the last full page is in memory.
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    again = whole.usage.prompt_tokens_details.cached_tokens
    assert again is not None
    assert whole.usage.prompt_tokens - 16 <= again < whole.usage.prompt_tokens
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    return Answer(text, usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens or 0)


@pytest.fixture
def serve(tmp_path: Path, model_path: Path):
    """Starts servers on one directory; stops those that a test left."""
    config = tmp_path / "kt.yaml"
    config.write_text(f"kvc2:\n  disk_path: {tmp_path / 'kv'}\nkv_disk_gb: 1\n")
    servers: list[Server] = []

    def start(*options: str) -> Server:
        servers.append(start_server("--config", str(config), *options))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()


def test_a_restart_keeps_the_prefix_for_whoever_asked(serve: Callable[..., Server]) -> None:
    first = serve()
    cold = ask(first, "alice")
    assert cold.cached_tokens == 0
    assert cold.prompt_tokens > 500
    assert first.stop() == 0, "".join(first.log)

    second = serve()
    warm = ask(second, "alice")
    assert warm.text == cold.text
    assert warm.cached_tokens >= warm.prompt_tokens - 16
    metrics = second.metrics()
    assert metrics["kt_prefix_store_loaded_pages_total{disk}"] >= warm.cached_tokens // 16
    assert metrics["kt_prefix_store_checksum_misses_total{disk}"] == 0
    other = ask(second, "bob")
    assert (other.text, other.cached_tokens) == (cold.text, 0)
    # Another question behind the same text.
    asked = ask(second, "alice", "How long is river 3?")
    assert asked.cached_tokens > 0.9 * asked.prompt_tokens
    assert second.stop() == 0, "".join(second.log)

    third = serve("--weight-format", "int8")
    quantised = ask(third, "alice")
    assert quantised.cached_tokens == 0
    assert third.stop() == 0, "".join(third.log)


def test_a_server_that_was_killed_loses_nothing_but_time(serve: Callable[..., Server]) -> None:
    first = serve()
    cold = ask(first, "alice")
    first.process.kill()
    first.process.wait()
    second = serve()
    warm = ask(second, "alice")
    assert warm.text == cold.text
    assert warm.cached_tokens < warm.prompt_tokens  # as much as was written, if anything
    metrics = second.metrics()
    assert metrics["kt_prefix_store_checksum_misses_total{disk}"] == 0
    assert second.stop() == 0, "".join(second.log)
