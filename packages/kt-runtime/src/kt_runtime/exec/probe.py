# SPDX-License-Identifier: Apache-2.0
"""Measures steps of a loaded model for the scheduler's time budget: a lone decode at the start, the
others while nobody waits. Leaves no KV and no counts behind, and decides nothing.

Rows are written to no page (slot -1) and attend to whatever the pages hold: what a step computes
does not change how long it takes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator

import numpy as np
import torch

from kt_runtime.config import EngineConfig
from kt_runtime.exec.runner import Runner
from kt_runtime.protocols import Batch, ModelShape
from kt_runtime.scheduler import StepTimeModel, StepWork

_log = logging.getLogger(__name__)

# One decode tells what an idle reader waits for; four is what a personal server rarely exceeds.
_MANY_DECODES = 4
# After one run that touches memory and records the graph. The least of three: what else the machine
# does can only add, and would otherwise become the default of what readers wait for, for good.
_DECODE_REPEATS = 3
# Chunks grow by this from one page on, which makes some five of them. Two tell what a token costs
# and what the experts do; more are measured as long as the next one is not expected to take longer
# than this, because a request that arrives meanwhile waits for it.
_CHUNK_GROWTH = 4
_LONGEST_CHUNK_S = 0.25
# Where a late chunk stands, unless the context ends before: far enough for attention to show, near
# enough that starting does not wait for it.
_LATE_POSITION = 1024
# Neighbouring ids may have similar embeddings and choose the same experts; a prime stride does not.
_ID_STRIDE = 7919


_Steps = Generator[None, None, float]


class Probe:
    """Two batches of decodes, chunks from a page to a whole step, and a chunk late in a long
    context, measured one step at a time. Belongs to the stepping thread.

    Args:
        times: learns what was measured.
        runner: runs the steps, and does not count them.
        shape, config, max_model_len: what the steps must fit.
        clock: seconds.

    Attributes:
        is_done: whether nothing is left to measure.
    """

    def __init__(
        self,
        times: StepTimeModel,
        runner: Runner,
        shape: ModelShape,
        config: EngineConfig,
        max_model_len: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._times = times
        self._runner = runner
        self._shape = shape
        self._config = config
        self._max_model_len = max_model_len
        self._clock = clock
        self._rest = self._measure_rest()
        self.is_done = False

    def start(self) -> None:
        """Measure a lone decode, all that is needed before the first request."""
        for _ in self._decodes(1):
            pass

    def step(self) -> None:
        """Run one more step. An error of the model ends the probe: requests may still succeed."""
        try:
            next(self._rest)
        except StopIteration:
            self.is_done = True
        except Exception:
            _log.exception("the probe of step times failed; only requests' steps are learned from")
            self.is_done = True

    def _measure_rest(self) -> Generator[None, None, None]:
        if self._config.max_num_seqs >= _MANY_DECODES:
            yield from self._decodes(_MANY_DECODES)
        page_size = self._config.kv_page_size
        largest = min(self._config.max_batch_tokens, self._max_model_len)
        size = min(page_size, largest)
        late_size = size
        while True:
            seconds = yield from self._chunk(0, size)
            is_slow = size > page_size and seconds * _CHUNK_GROWTH > _LONGEST_CHUNK_S
            if size == largest or is_slow:
                break
            late_size, size = size, min(size * _CHUNK_GROWTH, largest)
        late = min(_LATE_POSITION, self._max_model_len) - late_size
        if late > 0:
            yield from self._chunk(late, late_size)

    def _decodes(self, count: int) -> _Steps:
        work = StepWork(count, 0, count)
        return self._measure(
            work, _batch([0] * count, 1, self._shape, self._config), _DECODE_REPEATS
        )

    def _chunk(self, start: int, size: int) -> _Steps:
        work = StepWork().with_chunk(start, size)
        return self._measure(work, _batch([start], size, self._shape, self._config), 1)

    def _measure(self, work: StepWork, batch: Batch, repeats: int) -> _Steps:
        """Runs it, pausing after each time; returns its seconds."""
        taken = []
        for _ in range(repeats + 1):
            before = self._clock()
            self._runner.rehearse(batch)
            taken.append(self._clock() - before)
            yield
        # The first run pays for what later ones find done.
        seconds = min(taken[1:])
        self._times.probe(work, seconds)
        _log.info("probe: %s takes %.1f ms", work, seconds * 1e3)
        return seconds


def _batch(starts: list[int], size: int, shape: ModelShape, config: EngineConfig) -> Batch:
    """One chunk of `size` tokens at each of `starts`, written nowhere; the last rows' logits."""
    num_seqs, num_rows = len(starts), len(starts) * size

    def ints(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int32))

    seq_lens = np.asarray(starts) + size
    num_pages = -(-int(seq_lens.max()) // config.kv_page_size)
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
