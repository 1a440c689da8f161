# SPDX-License-Identifier: Apache-2.0
"""What KV pages on disk gain and cost, as clients of a real server see it: time to first token of a
shared prefix before and after a restart, and what writing does to running answers.

    python tools/measure_prefix_store.py  # both, on smolmoe-exact: some 6 minutes
    python tools/measure_prefix_store.py --only writing  # 5 minutes
    python tools/measure_prefix_store.py --only restart --prefix-tokens 4000

The restart: a server gets prompts with prefixes of their own (cold), is stopped, and the next one
on the same directory gets other questions behind the same prefixes (warm), and short prompts alone:
what the questions themselves take. Writing: two servers, one with a directory and one without, take
turns at the same streams, alone and beside prompts that keep coming.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from kt_server.bench.client import BenchClient, Record
from kt_server.bench.local_server import local_server
from kt_server.bench.prompts import PromptMaker
from kt_server.bench.summary import percentile

OWN_TOKENS = 8  # of each prompt, behind the shared prefix: a short question
STREAM_TOKENS = 32  # of the prompts of streams
PROMPT_TOKENS = 256  # of those that come meanwhile: some chunks each
# However slow the machine: enough for gaps to be seen at all.
LEAST_OUTPUT_TOKENS, LEAST_WARM_UP_TOKENS = 40, 20
# An idle server measures its own steps (exec/probe.py) until then, at the other one's expense.
PROBE_S = 4.0
# Beside prompts a step takes some three times as long as alone, so a turn gets fewer tokens.
PROMPTS_SLOW_BY = 3
# Pairs of turns. The slowest hundredth of the gaps of one turn are a few steps, which the machine's
# other work decides: with 3 pairs the ratio lay between -6 and +34 %, with 15 between +2 and +3 %.
RESTART_ROUNDS, WRITING_ROUNDS = 3, 15
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


async def first_tokens(
    url: str, model: str, prefixes: Sequence[str], seed: int
) -> tuple[list[Record], list[Record]]:
    """One request behind each prefix, one after the other; and then as many without prefix."""
    own = PromptMaker(seed)
    async with client_of(url, model) as client:
        for _ in range(3):  # connections, recorded graphs, code that loads on first use
            await ask(client, own.prompt(OWN_TOKENS), 8)
        behind = [await ask(client, f"{p} {own.prompt(OWN_TOKENS)}", 4) for p in prefixes]
        return behind, [await ask(client, own.prompt(OWN_TOKENS), 4) for _ in prefixes]


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
            cold, _ = asyncio.run(first_tokens(server.url, model, prefixes, 1))
        with local_server(model, arguments) as server:
            warm, alone = asyncio.run(first_tokens(server.url, model, prefixes, 2))
    for name, records in (("cold", cold), ("warm", warm), ("questions alone", alone)):
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


async def gaps(
    url: str, model: str, texts: Sequence[str], num_tokens: int, beside: PromptMaker | None
) -> list[float]:
    """Inter-token latencies of streams side by side, from when all of them decode, with prompts of
    `beside` one after the other meanwhile."""
    async with client_of(url, model) as client:

        async def keep_asking(prompts: PromptMaker) -> None:
            while True:
                await ask(client, prompts.prompt(PROMPT_TOKENS), 1)

        others = None if beside is None else asyncio.create_task(keep_asking(beside))
        records = await asyncio.gather(*(ask(client, text, num_tokens) for text in texts))
        if others is not None:
            others.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await others  # raises what made it fail, if anything did
    began = max(record.arrivals[0] for record in records)
    ended = min(record.arrivals[-1] for record in records)
    return [
        gap
        for record in records
        for later, gap in zip(record.arrivals[1:], record.itl, strict=True)
        if began < later - gap and later <= ended
    ]


async def written_bytes(url: str) -> float:
    """What the server has written to its directory since it started."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        text = await response.text()
    found = re.search(r'^kt_prefix_store_written_bytes_total\{tier="disk"\} (\S+)$', text, re.M)
    return float(found[1]) if found else 0.0


@dataclass(slots=True)
class Turns:
    """Gaps of one load, by turn, of the server that writes and of the other one."""

    gaps: dict[str, list[list[float]]]
    num_bytes: float = 0.0  # written
    seconds: float = 0.0  # while they were

    def report(self, load: str) -> None:
        """Prints quantiles of all gaps, and the paired ratios of turns."""
        pooled = {name: [g for turn in turns for g in turn] for name, turns in self.gaps.items()}
        for name, values in pooled.items():
            quantiles = ", ".join(
                f"p{q * 100:.0f} {percentile(values, q) * 1e3:.2f} ms" for q in (0.5, 0.9, 0.99)
            )
            print(f"{load}, writing {name}: {quantiles}, {len(values)} gaps")
        print(f"{load}: {self.num_bytes / self.seconds / 1e6:.2f} MB/s written")
        for q in (0.5, 0.99):
            on, off = ([percentile(turn, q) for turn in self.gaps[n]] for n in ("on", "off"))
            by_turn = sorted(a / b - 1 for a, b in zip(on, off, strict=True))
            whole = percentile(pooled["on"], q) / percentile(pooled["off"], q) - 1
            floor = f" (floor {GAP_FLOOR:+.0%})" if q == 0.99 else ""
            print(
                f"{load}, p{q * 100:.0f} on / off: {whole:+.1%}{floor}; by turn "
                f"{by_turn[0]:+.1%} to {by_turn[-1]:+.1%}, median {statistics.median(by_turn):+.1%}"
            )


def measure_writing(
    model: str, options: Sequence[str], num_streams: int, seconds: float, rounds: int
) -> None:
    """Prints the gaps between tokens with writing and without."""
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory())
        arms = {"off": [], "on": ["--kv-disk-path", str(Path(root) / "kv")]}
        urls = {
            name: stack.enter_context(local_server(model, [*more, *options])).url
            for name, more in arms.items()
        }
        prompts = asyncio.run(calibrated(urls["on"], model, STREAM_TOKENS))

        time.sleep(PROBE_S)

        def turn(arm: str, texts: Sequence[str], num_tokens: int, seed: int | None) -> list[float]:
            beside = None if seed is None else PromptMaker(seed)
            return asyncio.run(gaps(urls[arm], model, texts, num_tokens, beside))

        def texts() -> list[str]:
            return [prompts.prompt(STREAM_TOKENS) for _ in range(num_streams)]

        # Turns have as many tokens as take so long now: both servers answer the same.
        warm = [turn(arm, texts(), LEAST_WARM_UP_TOKENS, None) for arm in urls]
        alone = seconds / statistics.median(warm[0] + warm[1])
        for load, share in (("alone", 1), ("beside prompts", PROMPTS_SLOW_BY)):
            num_tokens = max(LEAST_OUTPUT_TOKENS, round(alone / share))
            turns = Turns({"off": [], "on": []})
            for i in range(rounds):
                same = texts()
                for arm in ("off", "on") if i % 2 else ("on", "off"):
                    before, began = asyncio.run(written_bytes(urls[arm])), time.perf_counter()
                    seed = None if share == 1 else 1 + i  # 0 made the streams' prompts
                    turns.gaps[arm].append(turn(arm, same, num_tokens, seed))
                    if arm == "on":
                        turns.seconds += time.perf_counter() - began
                        turns.num_bytes += asyncio.run(written_bytes(urls[arm])) - before
            turns.report(load)


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smolmoe-exact")
    parser.add_argument("--only", choices=("restart", "writing"))
    parser.add_argument("--prefix-tokens", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn of streams, about")
    parser.add_argument("--rounds", type=int, help="3 restarts and 15 pairs of turns if not given")
    parser.add_argument("--serve-args", default="", help="further options of kt serve")
    arguments = parser.parse_args()
    options = shlex.split(arguments.serve_args)
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {arguments.rounds}")
    model = arguments.model
    if arguments.only != "writing":
        rounds = arguments.rounds or RESTART_ROUNDS
        measure_restart(model, options, arguments.prefix_tokens, rounds)
    if arguments.only != "restart":
        rounds = arguments.rounds or WRITING_ROUNDS
        measure_writing(model, options, arguments.streams, arguments.seconds, rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
