# SPDX-License-Identifier: Apache-2.0
"""A CausalLM whose logits are a hash of the token history, read back from KV pages. Not a test.

A wrong page, slot, position or length changes the hash, so engine tests see it; and it is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kt_runtime.assembly import build_parts
from kt_runtime.cache.page_pool import PagePool
from kt_runtime.checkpoint.fingerprint import Fingerprint
from kt_runtime.checkpoint.model_dir import ModelConfig
from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.config import EngineConfig
from kt_runtime.core import Request, SamplingParams, TokenEvent
from kt_runtime.engine import Engine
from kt_runtime.exec.backend import Backend
from kt_runtime.exec.probe import Probe
from kt_runtime.protocols import Batch, KVLayer, ModelShape
from kt_runtime.scheduler import StepTimes

from .slow_storage import SlowStorage

VOCAB_SIZE = 89
EOS = 7
_PRIME = 2_147_483_647


def history_logits(token_ids: Sequence[int]) -> np.ndarray:
    """(VOCAB_SIZE,) float32 in [0, 8): a function of the whole history."""
    state = 1
    for token in token_ids:
        state = (state * 48_271 + token + 11) % _PRIME
    return _logits(state)


def history_rows(token_ids: Sequence[int]) -> np.ndarray:
    """history_logits after each of them."""
    return np.stack([history_logits(token_ids[: i + 1]) for i in range(len(token_ids))])


@lru_cache(maxsize=4096)
def _logits(state: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=state)).random(VOCAB_SIZE, np.float32) * 8


def greedy_continuation(prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What the fake model says to `prompt`, computed without engine or pages."""
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(int(history_logits(ids).argmax()))
    return ids[len(prompt) :]


class RecordedGraph:
    """Replays closures, and counts how often."""

    def __init__(self, num_rows: Tensor) -> None:
        self.num_rows = num_rows
        self.ops: list[Callable[[], None]] = []
        self.eager_ops: list[str] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for op in self.ops:
            op()


class FakeCausalLM:
    """Stores each token id in its slot's key; knows which rows to break."""

    shape = ModelShape(
        vocab_size=VOCAB_SIZE,
        num_layers=1,
        num_kv_heads=1,
        head_dim=1,
        max_position_embeddings=256,
    )
    weight_formats: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.fail_at: int | None = None  # a token id: a batch that holds it raises
        self.nan_at: int | None = None  # a token id: its row's logits are NaN
        self.now = 0.0  # seconds
        self.seconds: Callable[[Batch, int], float] | None = None  # of a batch with so many rows
        self.batches: list[Batch] = []
        self.graphs: list[RecordedGraph] = []

    def forward(self, ops: Any, batch: Batch, kv: Sequence[KVLayer]) -> Tensor:
        if isinstance(ops, RecordedGraph):
            out = torch.full((len(batch.input_ids), VOCAB_SIZE), torch.nan)

            def replay() -> None:
                live = int(ops.num_rows[0])
                out[:live] = self._compute(batch, kv, live)

            ops.ops.append(replay)
            return out
        self.batches.append(batch)
        logits = self._compute(batch, kv, len(batch.input_ids))
        return logits if batch.logits_rows is None else logits[batch.logits_rows.long()]

    def graphs_of(self, num_rows: Tensor, capacity: int) -> Callable[[], tuple[RecordedGraph, Any]]:
        def new_graph() -> tuple[RecordedGraph, Any]:
            graph = RecordedGraph(num_rows)
            self.graphs.append(graph)
            return graph, graph

        return new_graph

    def _compute(self, batch: Batch, kv: Sequence[KVLayer], live: int) -> Tensor:
        keys = kv[0].k.view(-1)
        ids = batch.input_ids[:live]
        if self.fail_at is not None and self.fail_at in ids.tolist():
            raise ValueError("[fake] this token breaks the model")
        if self.seconds is not None:
            self.now += self.seconds(batch, live)
        slots = batch.slot_mapping[:live].long()
        keys[slots[slots >= 0]] = ids.to(keys.dtype)[slots >= 0]
        page_size = kv[0].k.shape[1]
        rows = np.empty((live, VOCAB_SIZE), np.float32)
        bounds = batch.cu_seqlens_q.tolist()
        for s, seq_len in enumerate(batch.seq_lens.tolist()):
            held = [
                int(batch.block_table[s, p // page_size]) * page_size + p % page_size
                for p in range(seq_len)
            ]
            assert not keys[held].isnan().any()  # not one token that was not written
            history = keys[held].int().tolist()
            for row in range(bounds[s], min(bounds[s + 1], live)):
                position = seq_len - (bounds[s + 1] - row)
                assert position == int(batch.positions[row])
                rows[row] = history_logits(history[: position + 1])
                if history[position] == self.nan_at:
                    rows[row] = np.nan
        return torch.from_numpy(rows)


def fake_engine(
    model: FakeCausalLM | None = None,
    times: StepTimes | None = None,
    clock: Callable[[], float] | None = None,
    probe: Probe | None = None,
    storage: SlowStorage | None = None,
    **settings: Any,
) -> Engine:
    """An engine over the fake model; float32 pages, 64 of 4 tokens unless said otherwise.

    With a storage below its prefix store, requests load what is there and not in memory.

    Its clock is the model's own, which stands still unless the model says how long a batch takes.
    """
    model = model or FakeCausalLM()
    directory = Path(__file__).parent / "fake_checkpoint"
    config = EngineConfig(
        **{"weight_format": "float32", "kv_page_size": 4, "num_pages": 64, "max_num_seqs": 8}
        | {"max_batch_tokens": 32}
        | settings
    )
    backend = Backend(
        ops=None,  # type: ignore[arg-type]  # the fake model calls no ops
        graphs_of=model.graphs_of,
        kernel_target=lambda: "fake",
        op_counts=dict,
        version="0",
    )
    parts = build_parts(
        model,
        backend,
        config,
        model_config=ModelConfig({}, directory / "config.json"),
        eos_token_ids=(EOS,),
        fingerprint=Fingerprint(ModelFiles.open(directory)),
    )
    if storage is not None:
        pool = parts.pool
        spaces = storage.below(pool._space_of)
        reuse = config.enable_prefix_cache
        pool = PagePool(spaces, config.kv_page_size, pool._out_of_pages, reuse=reuse)
        parts = replace(parts, pool=pool)
    return Engine(parts, config, times=times, probe=probe, clock=clock or (lambda: model.now))


def greedy_request(
    request_id: str, prompt: Sequence[int], max_tokens: int | None = 8, **settings: Any
) -> Request:
    """A greedy request that eos does not end."""
    sampling = SamplingParams(
        **{"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True}
        | settings.pop("sampling", {})
    )
    return Request(request_id, tuple(prompt), sampling, **settings)


def drain(engine: Engine, max_steps: int = 10_000) -> list[TokenEvent]:
    """Steps until no request is left; all events in order."""
    events: list[TokenEvent] = []
    for _ in range(max_steps):
        if not engine.has_work:
            return events
        events += engine.step()
    raise AssertionError(f"requests still in flight after {max_steps} steps")


def tokens_of(events: Sequence[TokenEvent], request_id: str) -> list[int]:
    return [e.token_id for e in events if e.request_id == request_id and e.token_id is not None]


def last_of(events: Sequence[TokenEvent], request_id: str) -> TokenEvent:
    return [e for e in events if e.request_id == request_id][-1]
