# SPDX-License-Identifier: Apache-2.0
"""What a long prompt does to streams that are already decoding: their inter-token latencies while
it is computed, against `max_itl_ms`. Through `Engine.generate`; no HTTP.

    python tools/measure_interference.py a.gguf --streams 4 --prompt 8192 --max-itl-ms 100
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from kt_runtime import Engine, EngineConfig, Request, SamplingParams
from kt_runtime.inspect import resolve_model

FOREVER = 1 << 20  # tokens: streams end when they are told to
WARM_UP = 20  # tokens of each stream before the prompt arrives


async def stream(engine: Engine, name: str, prompt: Sequence[int], arrivals: list[float]) -> None:
    """Decode until cancelled, noting when each token came."""
    sampling = SamplingParams(temperature=0.0, max_tokens=FOREVER, ignore_eos=True)
    async for event in engine.generate(Request(name, tuple(prompt), sampling)):
        if event.error is not None:
            raise RuntimeError(event.error)
        arrivals.append(time.perf_counter())


async def measure(
    engine: Engine, num_streams: int, prompt_tokens: int
) -> tuple[float, list[float]]:
    """Seconds that the prompt took, and all gaps between tokens of a stream that end within."""
    rng = np.random.default_rng(0)

    def draw(size: int) -> list[int]:
        return [int(token) for token in rng.integers(0, engine.shape.vocab_size, size)]

    arrivals: list[list[float]] = [[] for _ in range(num_streams)]
    streams = [
        asyncio.create_task(stream(engine, f"stream {i}", draw(16), times))
        for i, times in enumerate(arrivals)
    ]
    while min(map(len, arrivals)) < WARM_UP:
        await asyncio.sleep(0.01)
    started = time.perf_counter()
    sampling = SamplingParams(temperature=0.0, max_tokens=1)
    async for _ in engine.generate(Request("prompt", tuple(draw(prompt_tokens)), sampling)):
        pass
    ended = time.perf_counter()
    for task in streams:
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    gaps = [
        later - earlier
        for times in arrivals
        for earlier, later in pairwise(times)
        if started < later <= ended
    ]
    return ended - started, gaps


def main() -> None:
    """Print one line per figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=8192, help="tokens")
    parser.add_argument("--max-itl-ms", type=float, help="default: the engine's own")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    config = EngineConfig(
        num_threads=options.threads,
        max_itl_ms=options.max_itl_ms,
        max_model_len=options.prompt + 4096,
        enable_prefix_cache=False,
    )
    with Engine.from_pretrained(resolve_model(options.model), config) as engine:
        seconds, gaps = asyncio.run(measure(engine, options.streams, options.prompt))
        limit = engine.stats().max_itl_s
    p50, p95, p99 = np.percentile(gaps, [50, 95, 99])
    rate = options.prompt / seconds
    print(f"prompt        {options.prompt} tokens in {seconds:.1f} s, {rate:.0f} tokens/s")
    print(f"streams       {options.streams}, {len(gaps)} gaps meanwhile")
    print(f"gap p50       {1e3 * p50:.1f} ms")
    print(f"gap p95       {1e3 * p95:.1f} ms")
    print(
        f"gap p99       {1e3 * p99:.1f} ms, {p99 / limit:.2f} of the limit of {1e3 * limit:.0f} ms"
    )
    print(f"gap max       {1e3 * max(gaps):.1f} ms")


if __name__ == "__main__":
    main()
