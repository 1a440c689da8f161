# SPDX-License-Identifier: Apache-2.0
"""One streamed request, timed where its events arrive. No statistics.

Definitions as those of vLLM's `bench serve`: TTFT runs from sending a request to the first event
with a token; ITL are the times between such events; TPOT is the time after the first of them per
token after the first. Tokens are what the server's `usage` says, never a count of events.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from kt_server.bench.choices import Endpoint


@dataclass(slots=True)
class Record:
    """What became of one request. Times are seconds of one monotonic clock.

    Attributes:
        sent: when it was sent.
        arrivals: when each event with a token arrived.
        ended: when the stream ended.
        prompt_tokens, cached_tokens, output_tokens: the server's usage.
        error: why it failed; None if it was answered to the end.
    """

    sent: float
    arrivals: list[float] = field(default_factory=list)
    ended: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float:
        """Time to first token, in seconds."""
        return self.arrivals[0] - self.sent

    @property
    def latency(self) -> float:
        """From sending to the last event with a token, in seconds."""
        return self.arrivals[-1] - self.sent

    @property
    def itl(self) -> list[float]:
        """Inter-token latencies, in seconds: one less than there are such events."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first, in seconds; None where there is only one."""
        if self.output_tokens < 2:
            return None
        return (self.latency - self.ttft) / (self.output_tokens - 1)


class BenchClient:
    """Asks one server. One connection per request in flight.

    Args:
        session: of aiohttp, without a limit of connections.
        url: the server's, without /v1.
        model: its name in the API.
        endpoint: which of the two generates; "completions" measures no chat template.
        ignore_eos: ask for exactly as many tokens as wanted; not every server takes it.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        model: str,
        endpoint: Endpoint = "completions",
        ignore_eos: bool = True,
    ) -> None:
        self._session = session
        self._url = f"{url}/v1/{'chat/completions' if endpoint == 'chat' else 'completions'}"
        self._model = model
        self._endpoint = endpoint
        self._ignore_eos = ignore_eos

    async def ask(self, prompt: str, max_tokens: int) -> Record:
        """Send one prompt and read the answer to its end. Failures are recorded, not raised."""
        body = self._body(prompt, max_tokens)
        record = Record(time.perf_counter())
        try:
            async with self._session.post(self._url, json=body) as response:
                if response.status != 200:
                    text = await response.text()
                    record.error = f"HTTP {response.status}: {text:.300}"
                else:
                    record.error = await self._read(response, record)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            record.error = f"{type(error).__name__}: {error}"
        record.ended = time.perf_counter()
        return record

    def _body(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._ignore_eos:
            body["ignore_eos"] = True
        if self._endpoint == "chat":
            return body | {"messages": [{"role": "user", "content": prompt}]}
        return body | {"prompt": prompt}

    async def _read(self, response: aiohttp.ClientResponse, record: Record) -> str | None:
        """Fill in the record; returns what is wrong with the answer, if anything is."""
        usage: dict[str, Any] | None = None
        async for line in response.content:
            now = time.perf_counter()
            if not line.startswith(b"data:"):
                continue
            data = line[len(b"data:") :].strip()
            if data == b"[DONE]":
                break
            event = msgspec.json.decode(data)
            if "error" in event:
                return f"error event: {event['error']!s:.300}"
            usage = event.get("usage") or usage
            if self._brings_a_token(event):
                record.arrivals.append(now)
        else:
            return "the stream ended without [DONE]"
        if usage is None:
            return "the stream had no usage"
        if not record.arrivals:
            return "the stream had no token"
        record.prompt_tokens = usage["prompt_tokens"]
        record.output_tokens = usage["completion_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        record.cached_tokens = details.get("cached_tokens") or 0
        return None

    def _brings_a_token(self, event: dict[str, Any]) -> bool:
        for choice in event.get("choices") or ():
            if self._endpoint == "completions":
                # llama-server sends tokens without text as empty ones; the last event may be no
                # token, but say why it ends.
                return bool(choice.get("text")) or choice.get("finish_reason") is None
            delta = choice.get("delta") or {}
            return bool(delta.get("content") or delta.get("reasoning_content"))
        return False
