# SPDX-License-Identifier: Apache-2.0
"""Measures a few steps of a loaded model at start-up, for the scheduler's time budget. Leaves no KV
and no counts behind, and decides nothing.

Rows are written to no page (slot -1) and attend to whatever the pages hold: what a step computes
does not change how long it takes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from kt_runtime.config import EngineConfig
from kt_runtime.exec.runner import Runner
from kt_runtime.protocols import Batch, ModelShape
from kt_runtime.scheduler import StepWork

_log = logging.getLogger(__name__)

Probed = list[tuple[StepWork, float]]

# Two points make a line; four is also what a personal server rarely exceeds.
_DECODE_BATCHES = (1, 4)
# After one run that touches memory and records the graph. A median of three bears one bad one.
_DECODE_REPEATS = 3
# Chunks grow by this from one page on, which makes some five of them. Two tell what a token costs
# and what the experts do; more are measured as long as the next one is not expected to take longer
# than this, because somebody waits for the start.
_CHUNK_GROWTH = 4
_LONGEST_CHUNK_S = 0.25
# Where a late chunk stands, unless the context ends before: far enough for attention to show, near
# enough that starting does not wait for it.
_LATE_POSITION = 1024
# Neighbouring ids may have similar embeddings and choose the same experts; a prime stride does not.
_ID_STRIDE = 7919


def probe(
    runner: Runner,
    shape: ModelShape,
    config: EngineConfig,
    max_model_len: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Probed:
    """Steps and the seconds they took: two batches of decodes, chunks from a page to a whole step,
    and a chunk late in a long context.

    Args:
        runner: runs them; its counts are put back.
        shape, config, max_model_len: what the steps must fit.
        clock: seconds.
    """
    probed: Probed = []
    counts = runner.steps, runner.graph_steps

    def measure(starts: list[int], size: int, repeats: int) -> float:
        batch = _batch(starts, size, shape, config)
        seconds = []
        for _ in range(repeats + 1):
            before = clock()
            runner.run(batch)
            seconds.append(clock() - before)
        # The first run pays for what later ones find done.
        return median(seconds[1:])

    for num_decodes in _DECODE_BATCHES:
        if num_decodes <= config.max_num_seqs:
            seconds = measure([0] * num_decodes, 1, _DECODE_REPEATS)
            probed.append((StepWork(num_decodes, 0, num_decodes), seconds))
            _log.info("probe: %d decodes take %.1f ms", num_decodes, seconds * 1e3)

    def chunk(start: int, size: int) -> float:
        seconds = measure([start], size, 1)
        probed.append((StepWork().with_chunk(start, size), seconds))
        _log.info("probe: a chunk of %d at %d takes %.1f ms", size, start, seconds * 1e3)
        return seconds

    largest = min(config.max_batch_tokens, max_model_len)
    size = min(config.page_size, largest)
    late_size = size
    while True:
        seconds = chunk(0, size)
        is_slow = size > config.page_size and seconds * _CHUNK_GROWTH > _LONGEST_CHUNK_S
        if size == largest or is_slow:
            break
        late_size, size = size, min(size * _CHUNK_GROWTH, largest)
    late = min(_LATE_POSITION, max_model_len) - late_size
    if late > 0:
        chunk(late, late_size)
    runner.steps, runner.graph_steps = counts
    return probed


def _batch(starts: list[int], size: int, shape: ModelShape, config: EngineConfig) -> Batch:
    """One chunk of `size` tokens at each of `starts`, written nowhere; the last rows' logits."""
    num_seqs, num_rows = len(starts), len(starts) * size

    def ints(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int32))

    seq_lens = np.asarray(starts) + size
    num_pages = -(-int(seq_lens.max()) // config.page_size)
    ends = np.arange(num_seqs + 1) * size
    return Batch(
        input_ids=ints(np.arange(num_rows) * _ID_STRIDE % shape.vocab_size),
        positions=ints((np.asarray(starts)[:, None] + np.arange(size)).ravel()),
        slot_mapping=ints(np.full(num_rows, -1)),
        block_table=ints(np.tile(np.arange(num_pages), (num_seqs, 1))),
        seq_lens=ints(seq_lens),
        cu_seqlens_q=ints(ends),
        logits_rows=ints(ends[1:] - 1),
    )
