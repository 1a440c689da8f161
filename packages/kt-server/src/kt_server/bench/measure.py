# SPDX-License-Identifier: Apache-2.0
"""One run of `kt bench` against a server that runs: its loads, and all of it as JSON. Prints
nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import aiohttp
import msgspec

from kt_server import __version__
from kt_server.bench.choices import Endpoint, Mode
from kt_server.bench.client import BenchClient
from kt_server.bench.engine_times import EngineTimes
from kt_server.bench.modes import Bench, Result, Settings

_MAX_EVENT_BYTES = 1 << 20  # of one line of a stream; some servers put whole prompts into events


async def measure(
    mode: Mode,
    url: str,
    model_name: str | None,
    api_key: str | None,
    endpoint: Endpoint,
    ignore_eos: bool,
    settings: Settings,
) -> tuple[str, list[Result]]:
    """The model's name in the API, and what became of each load.

    Raises:
        RuntimeError: the server lists no model, and none was named.
    """
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    async with aiohttp.ClientSession(
        headers=headers,
        # A connection of its own for each request: some servers close idle ones while we write.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=_MAX_EVENT_BYTES,
    ) as session:
        name = model_name or await _first_model(session, url)
        client = BenchClient(session, url, name, endpoint, ignore_eos)
        run = Bench(client, EngineTimes(session, url), settings).run(mode)
        return name, [result async for result in run]


async def _first_model(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(f"{url}/v1/models") as response:
            models = await response.json(content_type=None)
            return str(models["data"][0]["id"])
    except (aiohttp.ClientError, ValueError, LookupError, TypeError) as error:
        message = f"[bench] {url} must list a model, or --model name one; got {error!r}"
        raise RuntimeError(message) from None


def as_json(
    mode: Mode, target: dict[str, Any], settings: Settings, results: Sequence[Result]
) -> bytes:
    """All figures and every request."""
    report = {
        "kt": __version__,
        "mode": mode,
        "target": target,
        "settings": asdict(settings),
        "results": [
            asdict(result.summary)
            | {
                "decode": None if result.decode is None else result.decode._asdict(),
                "requests": [asdict(record) for record in result.records],
            }
            for result in results
        ],
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=1)
