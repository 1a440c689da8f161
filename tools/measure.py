# SPDX-License-Identifier: Apache-2.0
"""The speeds that docs/benchmarks.md states: one MoE layer, and the engine on the demo model.

Medians with minimum and maximum, wall time, all threads. For commit-to-commit tracking: asv.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from kt_kernel import Experts, MoE, ThreadPool, isa
from kt_runtime import LLM, SamplingParams
from kt_runtime.config import WeightFormat

# Qwen3-30B-A3B's layer with half its experts: 170 MB in int4, several times any cache here.
NUM_EXPERTS, HIDDEN_SIZE, INTERMEDIATE_SIZE, TOP_K = 64, 2048, 768, 8
FORMATS: tuple[WeightFormat, ...] = ("float32", "bf16", "int8", "int4")
NUM_PROMPT_TOKENS, NUM_OUTPUT_TOKENS = 512, 64


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smolmoe-exact")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    arguments = parser.parse_args()
    formats: list[WeightFormat] = arguments.formats
    print(f"target {isa.active()}, {ThreadPool().num_threads} threads")
    for weight_format in formats:
        measure_layer(weight_format)
    for weight_format in formats:
        measure_engine(arguments.model, weight_format)
    return 0


def measure_layer(weight_format: str) -> None:
    """Routing is drawn anew for each call, so that weights come from memory."""
    rng = np.random.default_rng(0)
    pool = ThreadPool()
    wide = rng.standard_normal((INTERMEDIATE_SIZE, HIDDEN_SIZE), np.float32) * 0.02
    tall = rng.standard_normal((HIDDEN_SIZE, INTERMEDIATE_SIZE), np.float32) * 0.02
    experts = Experts.empty(
        NUM_EXPERTS,
        HIDDEN_SIZE,
        INTERMEDIATE_SIZE,
        gate=weight_format,
        up=weight_format,
        down=weight_format,
    )
    for expert in range(NUM_EXPERTS):
        experts.put(expert, "gate", wide)
        experts.put(expert, "up", wide)
        experts.put(expert, "down", tall)
    moe = MoE(experts, top_k=TOP_K, max_tokens=128, pool=pool)
    token_bytes = TOP_K * experts.nbytes / NUM_EXPERTS
    token_operations = TOP_K * 6 * HIDDEN_SIZE * INTERMEDIATE_SIZE
    for num_tokens, runs in ((1, 40), (128, 9)):
        hidden = rng.standard_normal((num_tokens, HIDDEN_SIZE), np.float32)
        weights = np.full((num_tokens, TOP_K), 1 / TOP_K, np.float32)
        out = np.empty_like(hidden)

        def call(
            hidden: np.ndarray = hidden, weights: np.ndarray = weights, out: np.ndarray = out
        ) -> None:
            ids = [rng.permutation(NUM_EXPERTS)[:TOP_K] for _ in range(len(hidden))]
            moe.forward(hidden, np.array(ids, np.int32), weights, out)

        low, median, high = spread(call, runs)
        rate = (
            f"{token_bytes / median / 1e9:.1f} GB/s of weights"
            if num_tokens == 1
            else f"{num_tokens * token_operations / median / 1e9:.0f} GOP/s"
        )
        times = f"{median * 1e3:.2f} ms ({low * 1e3:.2f} to {high * 1e3:.2f})"
        print(f"layer   {weight_format:8s} {num_tokens:4d} tokens  {times}  {rate}", flush=True)


def measure_engine(model: str, weight_format: WeightFormat) -> None:
    """Prefill of one prompt, decode of one and of four streams, prefix reuse off."""
    rng = np.random.default_rng(0)

    def prompt(num_tokens: int) -> list[int]:
        return [int(i) for i in rng.integers(3, 40000, num_tokens)]

    def sampling(max_tokens: int) -> SamplingParams:
        return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)

    with LLM(model, weight_format, enable_prefix_cache=False, max_model_len=1024) as llm:

        def answer(streams: int, num_prompt_tokens: int, max_tokens: int) -> None:
            prompts = [prompt(num_prompt_tokens) for _ in range(streams)]
            llm.generate(prompts, sampling(max_tokens))

        _, prefill, _ = spread(partial(answer, 1, NUM_PROMPT_TOKENS, 1), runs=3)
        rates = [f"prefill {NUM_PROMPT_TOKENS / prefill:.0f} tokens/s"]
        for streams in (1, 4):
            _, seconds, _ = spread(partial(answer, streams, 8, NUM_OUTPUT_TOKENS), runs=3)
            rates.append(f"decode x{streams} {streams * NUM_OUTPUT_TOKENS / seconds:.1f} tokens/s")
    print(f"engine  {weight_format:8s} {', '.join(rates)}", flush=True)


def spread(call: Callable[[], object], runs: int) -> tuple[float, float, float]:
    """Minimum, median and maximum seconds of `runs` calls after one that is not counted."""
    call()
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds), float(np.median(seconds)), max(seconds)


if __name__ == "__main__":
    sys.exit(main())
