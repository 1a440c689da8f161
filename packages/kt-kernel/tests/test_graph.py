# SPDX-License-Identifier: Apache-2.0
"""Recorded ops: replay is eager execution, bit for bit, whatever changes in between."""

import gc
import math
import threading

import numpy as np
import pytest

from kt_kernel import Graph, Linear, Router, Stream, ThreadPool
from kt_kernel.ops import Ops

from .cases import MoeCase
from .moe_layer import MoeLayer

F32, I32 = np.float32, np.int32
CAPACITY, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, PAGE, VOCAB = 6, 32, 4, 2, 8, 4, 50
MOE = MoeCase(8, HIDDEN, 24, 2, CAPACITY)


class DecodeLayer:
    """One transformer layer on every op there is, with the buffers of a decode bucket."""

    def __init__(self, pool: ThreadPool, format: str, rng: np.random.Generator):
        def linear(n, k, format=format):
            weight = rng.standard_normal((n, k), F32) / F32(k**0.5)
            return Linear.pack(weight, format=format, pool=pool)

        self.embed = rng.standard_normal((VOCAB, HIDDEN), F32)
        self.norm = 1 + rng.standard_normal(HIDDEN, F32) / 8
        self.q_norm = 1 + rng.standard_normal(HEAD_DIM, F32) / 8
        self.wq, self.wo = linear(HEADS * HEAD_DIM, HIDDEN), linear(HIDDEN, HEADS * HEAD_DIM)
        self.wk, self.wv = (linear(KV_HEADS * HEAD_DIM, HIDDEN) for _ in range(2))
        self.gate, self.up, self.down = linear(20, HIDDEN), linear(20, HIDDEN), linear(HIDDEN, 20)
        self.router = linear(8, HIDDEN, "float32")
        experts = MoeLayer(MOE, rng)
        self.moe = experts.moe(experts.pack(format, pool), pool)
        angle = np.arange(64)[:, None] / 10.0 ** np.arange(HEAD_DIM // 2)
        self.cos, self.sin = np.cos(angle).astype(F32), np.sin(angle).astype(F32)
        self.caches = [np.zeros((40, PAGE, KV_HEADS, HEAD_DIM), F32) for _ in range(2)]

    def buffers(self, rows: int) -> dict[str, np.ndarray]:
        shapes = {
            "x": (HIDDEN,),
            "normed": (HIDDEN,),
            "q": (HEADS, HEAD_DIM),
            "k": (KV_HEADS, HEAD_DIM),
            "v": (KV_HEADS, HEAD_DIM),
            "attended": (HEADS, HEAD_DIM),
            "gate": (20,),
            "up": (20,),
            "shared": (HIDDEN,),
            "logits": (8,),
            "topk_weights": (2,),
            "out": (HIDDEN,),
        }
        arrays = {name: np.full((rows, *shape), 7, F32) for name, shape in shapes.items()}
        arrays |= {name: np.zeros(rows, I32) for name in ("ids", "positions", "slots", "seq_lens")}
        arrays["topk_ids"] = np.zeros((rows, 2), I32)
        arrays["block_table"] = np.zeros((rows, 5), I32)
        arrays["cu_seqlens_q"] = np.arange(rows + 1, dtype=I32)
        return arrays

    def forward(self, ops: Ops, b: dict[str, np.ndarray]) -> None:
        flat = {
            name: b[name].reshape(len(b[name]), math.prod(b[name].shape[1:]))
            for name in ("q", "k", "v", "attended")
        }
        ops.embedding(b["ids"], self.embed, b["x"])
        ops.rms_norm(b["x"], self.norm, b["normed"], eps=1e-5)
        for name, weight in (("q", self.wq), ("k", self.wk), ("v", self.wv)):
            ops.linear(b["normed"], weight, flat[name])
        ops.rms_norm(b["q"], self.q_norm, b["q"], eps=1e-5)
        ops.rope_write_kv(
            b["q"], b["k"], b["v"], self.cos, self.sin, b["positions"], b["slots"], *self.caches
        )
        ops.attention(
            b["q"],
            *self.caches,
            b["block_table"],
            b["seq_lens"],
            b["cu_seqlens_q"],
            b["attended"],
            scale=HEAD_DIM**-0.5,
        )
        ops.linear(flat["attended"], self.wo, b["x"], accumulate=True)
        ops.rms_norm(b["x"], self.norm, b["normed"], eps=1e-5)
        ops.linear(b["normed"], self.router, b["logits"])
        ops.route(b["logits"], b["topk_ids"], b["topk_weights"], Router("sigmoid"))
        ops.linear(b["normed"], self.gate, b["gate"])
        ops.linear(b["normed"], self.up, b["up"])
        ops.activate(b["gate"], b["up"], b["gate"])
        ops.linear(b["gate"], self.down, b["shared"])
        ops.moe(
            self.moe, b["normed"], b["topk_ids"], b["topk_weights"], b["shared"], accumulate=True
        )
        ops.add(b["x"], b["shared"], b["out"])

    def step(self, buffers: dict[str, np.ndarray], position: int, ids: np.ndarray) -> None:
        """Fill the buffers of all live rows for the token at `position` of each sequence."""
        rows = np.arange(len(ids), dtype=I32)
        buffers["ids"][: len(ids)] = ids
        buffers["positions"][: len(ids)] = position
        buffers["seq_lens"][: len(ids)] = position + 1
        buffers["block_table"][: len(ids)] = rows[:, None] * 5 + np.array([3, 0, 4, 1, 2])
        pages = buffers["block_table"][: len(ids), position // PAGE]
        buffers["slots"][: len(ids)] = pages * PAGE + position % PAGE


NUM_OPS = 18


@pytest.mark.parametrize("format", ["float32", "int4"])
def test_replay_is_eager_execution_for_any_number_of_live_rows(target, format, pool, rng):
    layer = DecodeLayer(pool, format, rng)
    num_rows, recorded = np.zeros(1, I32), layer.buffers(CAPACITY)
    graph = Graph(pool, num_rows)
    layer.forward(graph, recorded)
    assert len(graph) == NUM_OPS
    assert (recorded["out"] == 7).all()  # recording computes nothing

    eager_caches = [cache.copy() for cache in layer.caches]
    for position, live in enumerate((6, 6, 3, 1, 5, 0, 6)):
        ids = rng.integers(0, VOCAB, live).astype(I32)
        num_rows[0] = live
        layer.step(recorded, position, ids)
        for name in ("x", "out", "q"):
            recorded[name][live:] = 7
        graph.replay()

        eager = layer.buffers(live)
        layer.step(eager, position, ids)
        graph_caches, layer.caches = layer.caches, eager_caches
        layer.forward(Stream(pool), eager)
        layer.caches = graph_caches
        assert np.isfinite(eager["out"]).all()
        for name in ("x", "topk_ids", "topk_weights", "out"):
            assert np.array_equal(recorded[name][:live], eager[name]), f"{name} at {position}"
        for name in ("x", "out", "q"):
            assert (recorded[name][live:] == 7).all(), f"padding of {name} was written"
        assert (recorded["topk_ids"][live:] == -1).all()
        for ours, theirs in zip(graph_caches, eager_caches, strict=True):
            assert np.array_equal(ours, theirs)


def test_one_graph_of_each_capacity_gives_the_same_bits(pool, rng):
    layer = DecodeLayer(pool, "int8", rng)
    ids = rng.integers(0, VOCAB, 2).astype(I32)
    results = []
    for capacity in (2, 4, CAPACITY):
        num_rows, buffers = np.full(1, 2, I32), layer.buffers(capacity)
        graph = Graph(pool, num_rows)
        layer.forward(graph, buffers)
        layer.step(buffers, 0, ids)
        graph.replay()
        results.append(buffers["out"][:2].copy())
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_live_rows_are_clamped_to_the_capacity(pool):
    x, out, num_rows = np.ones((3, 8), F32), np.zeros((3, 8), F32), np.array([99], I32)
    graph = Graph(pool, num_rows)
    graph.add(x, x, out)
    graph.replay()
    assert (out == 2).all()
    out[:] = 0
    num_rows[0] = -5
    graph.replay()
    assert not out.any()


def test_the_graph_keeps_what_it_needs(rng):
    own = ThreadPool(2)
    weight = rng.standard_normal((16, 16), F32)
    x, out = rng.standard_normal((2, 16), F32), np.empty((2, 16), F32)
    graph = Graph(own, np.array([2], I32))
    graph.linear(x.copy(), Linear.pack(weight, format="float32"), out)
    del own
    gc.collect()
    filler = [rng.standard_normal((64, 64)) for _ in range(100)]  # reuse freed memory
    graph.replay()
    expected = np.empty_like(out)
    Stream(ThreadPool(1)).linear(x, Linear.pack(weight, format="float32"), expected)
    assert np.array_equal(out, expected)
    assert len(filler) == 100


def test_counts_every_op_of_every_replay():
    own = ThreadPool(1)
    x, out = np.ones((2, 8), F32), np.empty((2, 8), F32)
    graph = Graph(own)
    for _ in range(3):
        graph.add(x, x, out)
    assert own.op_counts() == {}
    graph.replay()
    graph.replay()
    assert own.op_counts() == {"add": 6}


def test_a_table_of_blocks_is_read_where_it_lies_at_every_replay(pool, rng):
    """Of a file, say, which the graph keeps mapped."""
    table, ids = rng.integers(0, 256, (4, 34), np.uint8), np.array([1, 3], I32)
    table[:, :2] = np.array([1], np.float16).view(np.uint8)
    out = np.zeros((2, 32), F32)
    graph = Graph(pool)
    graph.embedding(ids, table.view(), out, format="q8_0")
    for chosen in ([1, 3], [0, 0]):
        ids[:] = chosen
        graph.replay()
        assert np.array_equal(out, table[chosen, 2:].view(np.int8))
    table[0, 2:] ^= 0x15
    graph.replay()
    assert np.array_equal(out, table[[0, 0], 2:].view(np.int8))


def test_an_error_names_its_op_and_spoils_the_step_not_the_graph(pool):
    ids, weight, out = np.array([1, 60], I32), np.ones((50, 8), F32), np.zeros((2, 8), F32)
    graph = Graph(pool)
    graph.add(out, out, out)
    graph.embedding(ids, weight, out)
    with pytest.raises(ValueError, match=r"^\[graph\.replay\] op 1 embedding: ids .*got 60$"):
        graph.replay()
    ids[1] = 2
    graph.replay()
    assert (out == 1).all()


def test_bad_arguments_are_refused_when_they_are_recorded(pool):
    graph = Graph(pool)
    with pytest.raises(ValueError, match=r"^\[add\] y must be .*; got float32 \(1, 8\)$"):
        graph.add(np.ones((2, 8), F32), np.ones((1, 8), F32), np.ones((2, 8), F32))
    assert len(graph) == 0
    graph.replay()  # an empty graph is nothing to do
    with pytest.raises(ValueError, match=r"^\[graph\] num_rows must be .*; got int64 \(1,\)$"):
        Graph(pool, np.zeros(1, np.int64))


def test_a_moe_of_another_pool_is_refused(pool, rng):
    layer = MoeLayer(MOE, rng)
    moe = layer.moe(layer.pack("int8", pool), pool)
    out = np.empty_like(layer.hidden)
    with pytest.raises(ValueError, match=r"^\[moe\] moe must belong to the stream's pool"):
        Graph(ThreadPool(1)).moe(moe, layer.hidden, layer.topk_ids, layer.topk_weights, out)


def test_replay_is_refused_while_the_graph_replays(pool, rng):
    """Or, if the first had already finished, both run: never two at once."""
    weight = Linear.pack(rng.standard_normal((512, 512), F32), format="float32")
    x, out = rng.standard_normal((64, 512), F32), np.empty((64, 512), F32)
    graph = Graph(pool)
    for _ in range(5):
        graph.linear(x, weight, out)
    refused = []

    def work():
        for _ in range(5):
            try:
                graph.replay()
            except ValueError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(message.startswith("[graph.replay]") for message in refused)
    expected = np.empty_like(out)
    Stream(pool).linear(x, weight, expected)
    assert np.array_equal(out, expected)
