# SPDX-License-Identifier: Apache-2.0
"""What KV pages on disk gain and cost, as clients of a real server see it: time to first token of a
shared prefix before and after a restart, and what writing does to running answers.

    python tools/measure_prefix_store.py  # both, on smolmoe-exact: some 5 minutes
    python tools/measure_prefix_store.py --only restart --prefix-tokens 4000

The restart: a server gets prompts with prefixes of their own (cold), is stopped, and the next one
on the same directory gets other questions behind the same prefixes (warm). Writing: two servers,
one with a directory and one without, take turns at the same load of streams.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shlex
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp

from kt_server.bench.client import BenchClient, Record
from kt_server.bench.local_server import local_server
from kt_server.bench.prompts import PromptMaker
from kt_server.bench.summary import percentile

OWN_TOKENS = 8  # of each prompt, behind the shared prefix: a short question
# What a release must keep and wants: parts of the cold time, and how much longer gaps may get.
TTFT_FLOOR, TTFT_GOAL, GAP_FLOOR = 0.10, 0.02, 0.05


@contextlib.asynccontextmanager
async def client_of(url: str, model: str) -> AsyncIterator[BenchClient]:
    """A client whose connections are as many as it has requests."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield BenchClient(session, url, model)


async def ask(client: BenchClient, prompt: str, max_tokens: int) -> Record:
    """One answered request."""
    record = await client.ask(prompt, max_tokens)
    if record.error is not None:
        raise RuntimeError(f"[measure] the server must answer; got {record.error}")
    return record


async def first_tokens(url: str, model: str, prefixes: Sequence[str], seed: int) -> list[Record]:
    """One request behind each prefix, one after the other."""
    own = PromptMaker(seed)
    async with client_of(url, model) as client:
        for _ in range(3):  # connections, recorded graphs, code that loads on first use
            await ask(client, own.prompt(8), 8)
        return [await ask(client, f"{p} {own.prompt(OWN_TOKENS)}", 4) for p in prefixes]


async def calibrated(url: str, model: str, num_tokens: int) -> PromptMaker:
    """Makes prompts of that many of the model's tokens."""
    prompts = PromptMaker(0)
    async with client_of(url, model) as client:
        await prompts.calibrate(client, num_tokens)
    return prompts


def measure_restart(model: str, options: Sequence[str], num_tokens: int, rounds: int) -> None:
    """Prints TTFT before and after a restart."""
    with tempfile.TemporaryDirectory() as root:
        arguments = ["--kv-disk-path", str(Path(root) / "kv"), *options]
        with local_server(model, arguments) as server:
            print("\n".join(server.lines))
            prompts = asyncio.run(calibrated(server.url, model, num_tokens))
            prefixes = [prompts.prompt(num_tokens) for _ in range(rounds)]
            cold = asyncio.run(first_tokens(server.url, model, prefixes, 1))
        with local_server(model, arguments) as server:
            warm = asyncio.run(first_tokens(server.url, model, prefixes, 2))
    for name, records in (("cold", cold), ("warm", warm)):
        times = [record.ttft for record in records]
        tokens = statistics.median(r.prompt_tokens for r in records)
        cached = statistics.median(r.cached_tokens for r in records)
        rate = statistics.median(r.prompt_tokens / r.ttft for r in records)
        print(
            f"{name}: TTFT {statistics.median(times) * 1e3:.1f} ms ({min(times) * 1e3:.1f} to "
            f"{max(times) * 1e3:.1f}), {tokens:.0f} tokens, {cached:.0f} cached, "
            f"{rate:.0f} tokens/s"
        )
    ratio = statistics.median(w.ttft / c.ttft for w, c in zip(warm, cold, strict=True))
    print(f"warm / cold: {ratio:.2%} (floor {TTFT_FLOOR:.0%}, goal {TTFT_GOAL:.0%})")


async def gaps(url: str, model: str, prompts: Sequence[str], num_tokens: int) -> list[float]:
    """Inter-token latencies of streams side by side, from when all of them decode."""
    async with client_of(url, model) as client:
        records = await asyncio.gather(*(ask(client, p, num_tokens) for p in prompts))
    began = max(record.arrivals[0] for record in records)
    ended = min(record.arrivals[-1] for record in records)
    return [
        gap
        for record in records
        for later, gap in zip(record.arrivals[1:], record.itl, strict=True)
        if began < later - gap and later <= ended
    ]


def measure_writing(
    model: str, options: Sequence[str], num_streams: int, num_tokens: int, rounds: int
) -> None:
    """Prints the gaps between tokens with writing and without."""
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory())
        arms = {"off": [], "on": ["--kv-disk-path", str(Path(root) / "kv")]}
        urls = {
            name: stack.enter_context(local_server(model, [*more, *options])).url
            for name, more in arms.items()
        }
        prompts = asyncio.run(calibrated(urls["on"], model, 64))
        seen: dict[str, list[float]] = {name: [] for name in urls}
        ratios = []
        for turn in range(rounds + 1):
            texts = [prompts.prompt(64) for _ in range(num_streams)]
            order = list(urls)[:: 1 if turn % 2 else -1]
            new = {n: asyncio.run(gaps(urls[n], model, texts, num_tokens)) for n in order}
            if turn:  # the first round only warms up
                for name, values in new.items():
                    seen[name] += values
                ratios.append(percentile(new["on"], 0.99) / percentile(new["off"], 0.99))
    for name, values in seen.items():
        print(
            f"writing {name}: {num_streams} streams, "
            f"gaps p50 {percentile(values, 0.5) * 1e3:.2f} ms, "
            f"p99 {percentile(values, 0.99) * 1e3:.2f} ms, {len(values)} of them"
        )
    pooled = percentile(seen["on"], 0.99) / percentile(seen["off"], 0.99)
    print(
        f"p99 on / off: {pooled - 1:+.1%} (floor {GAP_FLOOR:+.0%}); by round "
        f"{min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%}, median "
        f"{statistics.median(ratios) - 1:+.1%}"
    )


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smolmoe-exact")
    parser.add_argument("--only", choices=("restart", "writing"))
    parser.add_argument("--prefix-tokens", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--output-tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve-args", default="", help="further options of kt serve")
    arguments = parser.parse_args()
    options = shlex.split(arguments.serve_args)
    model, rounds = arguments.model, arguments.rounds
    if arguments.only != "writing":
        measure_restart(model, options, arguments.prefix_tokens, rounds)
    if arguments.only != "restart":
        measure_writing(model, options, arguments.streams, arguments.output_tokens, rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
