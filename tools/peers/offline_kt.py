# SPDX-License-Identifier: Apache-2.0
"""Our engine without a server, as `llama-bench` runs llama.cpp: a prompt of random tokens alone,
then generation from one token. One JSON object on stdout; judges nothing.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from kt_runtime import LLM, EngineConfig, Request, SamplingParams

WARM_UP = 8  # tokens: records the graph that the timed steps replay, and touches all weights


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--generate", type=int, default=64, help="tokens to generate")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    started = time.perf_counter()
    llm = LLM(
        options.model,
        num_threads=options.threads,
        enable_prefix_cache=False,
        max_batch_tokens=max(options.prompt, EngineConfig().max_batch_tokens),
        max_model_len=max(options.prompt, options.generate + WARM_UP) + 8,
    )
    loaded = time.perf_counter()
    rng = np.random.default_rng(0)
    generate(llm, rng, 1, WARM_UP)
    prefill = generate(llm, rng, options.prompt, 1)[0]
    times = generate(llm, rng, 1, options.generate + 1)
    result = {
        "load_seconds": loaded - started,
        "prefill_tokens_per_s": options.prompt / prefill,
        "decode_tokens_per_s": options.generate / (times[-1] - times[0]),
        "stats": {
            "target": llm.engine.stats().kernel_target,
            "weight_formats": dict(llm.engine.stats().weight_formats),
        },
    }
    print(json.dumps(result))


def generate(llm: LLM, rng: np.random.Generator, prompt: int, tokens: int) -> list[float]:
    """Seconds from the start at which each generated token was there."""
    ids = rng.integers(0, llm.engine.shape.vocab_size, prompt).tolist()
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    llm.engine.add(Request("measured", tuple(ids), sampling))
    times: list[float] = []
    started = time.perf_counter()
    while llm.engine.has_work:
        for event in llm.engine.step():
            if event.error is not None:
                raise RuntimeError(event.error)
            times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
