# SPDX-License-Identifier: Apache-2.0
"""How fast our kernel packs a layer's weights, by the wall clock. No peer has the same job."""

from __future__ import annotations

import time

import numpy as np

from kt_kernel import Experts, ThreadPool
from shapes import Shape

INPUT_BYTES = 150e6  # beyond the caches, and quick


def pack_rates(shape: Shape, name: str, pool: ThreadPool, rounds: int) -> list[float]:
    """GB/s of bf16 input packed into a format, storage allocated anew, once per round."""
    count = max(2 * pool.num_threads, round(INPUT_BYTES / (2 * shape.weights_per_expert)))
    rng = np.random.default_rng(0)
    size = (shape.intermediate_size, shape.hidden_size)
    values = rng.standard_normal(size, np.float32) / np.float32(shape.hidden_size**0.5)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    wide = np.repeat(bits[None], count, axis=0)
    tall = np.repeat(np.ascontiguousarray(bits.T)[None], count, axis=0)
    rates = []
    for _ in range(1 + rounds):
        started = time.perf_counter()
        Experts.pack(wide, wide, tall, format=name, pool=pool, dtype="bf16")
        rates.append(3 * wide.nbytes / (time.perf_counter() - started) / 1e9)
    return rates[1:]  # the first round's memory is new to the process
