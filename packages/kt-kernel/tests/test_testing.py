# SPDX-License-Identifier: Apache-2.0
"""Fault injection reaches every kernel of every target, and leaves no trace."""

import numpy as np
import pytest

from kt_kernel import Router, Stream, isa
from kt_kernel.formats import FORMATS
from kt_kernel.testing import negated

from .cases import ATTENTION, LONG_ATTENTION, MOE
from .moe_layer import MoeLayer
from .paged import PagedKv
from .sources import Source, quantised

F32 = np.float32


def results(pool, rng) -> dict[str, np.ndarray]:
    """One result per op, from fixed inputs, as a name -> array dictionary."""
    stream = Stream(pool)
    x, y = (rng.standard_normal((3, 40), F32) for _ in range(2))
    outs: dict[str, np.ndarray] = {}

    def out(name, shape=(3, 40), dtype=F32):
        outs[name] = np.empty(shape, dtype)
        return outs[name]

    stream.activate(x, y, out("activate"))
    stream.add(x, y, out("add"))
    stream.embedding(np.array([2, 0], np.int32), x, out("embedding", (2, 40)))
    stream.rms_norm(x, y[0], out("rms_norm"), eps=1e-5)
    stream.route(x, np.empty((3, 4), np.int32), out("route", (3, 4)), Router())
    wide = rng.standard_normal((3, 256), F32)
    for format, facts in FORMATS.items():
        floats = Source(rng.standard_normal((24, 256), F32))
        source = quantised(format, (24, 256), rng) if facts.source_k else floats
        stream.linear(wide, source.linear(format), out(f"gemm_{format}", (3, 24)))
    q, k = rng.standard_normal((3, 2, 20), F32), rng.standard_normal((3, 1, 20), F32)
    table, zeros = np.full((5, 10), 0.5, F32), np.zeros(3, np.int32)
    caches = np.empty((1, 4, 1, 20), F32), np.empty((1, 4, 1, 20), F32)
    out("rope_write_kv", q.shape)[:] = q
    stream.rope_write_kv(outs["rope_write_kv"], k, k, table, table, zeros, zeros - 1, *caches)
    outs["attention"] = PagedKv(ATTENTION[1], rng).attend(stream)
    outs["merge_attention"] = PagedKv(LONG_ATTENTION[0], rng).attend(stream)
    layer = MoeLayer(MOE[1], rng)
    outs["combine"] = layer.forward(layer.pack("int8", pool), pool)
    return outs


@pytest.mark.parametrize("kernel", isa.kernels())
def test_negating_a_kernel_changes_what_comes_through_it_and_nothing_else(target, kernel, pool):
    clean = results(pool, np.random.default_rng(0))
    with negated(kernel):
        faulty = results(pool, np.random.default_rng(0))
    after = results(pool, np.random.default_rng(0))
    changed = {name for name in clean if not np.array_equal(clean[name], faulty[name])}
    op, _, format = kernel.partition("_")
    if kernel == "prepare_rows":  # the activations of every matrix product
        # In the MoE two signs cancel in gate, up and down, but not in silu.
        assert changed == {*(f"gemm_{name}" for name in FORMATS), "combine"}
    elif kernel == "gather_rows":  # what several tokens of one expert go through
        assert changed == {"combine"}
    elif op == "pack":
        assert changed == {f"gemm_{format}", *(["combine"] if format == "int8" else [])}
    elif kernel in ("gemm_int8", "activate"):
        assert changed == {kernel, "combine"}
    elif kernel == "attention":  # also the sums that merge_attention merges
        assert changed == {kernel, "merge_attention"}
        assert all(np.array_equal(faulty[name], -clean[name]) for name in changed)
    else:
        assert changed == {kernel}
        assert np.array_equal(faulty[kernel], -clean[kernel])
    assert all(np.array_equal(clean[name], after[name]) for name in clean)


def test_an_error_inside_still_restores(pool):
    x, out = np.ones((1, 8), F32), np.empty((1, 8), F32)
    with pytest.raises(RuntimeError, match="inside"), negated("add"):
        raise RuntimeError("inside")
    Stream(pool).add(x, x, out)
    assert (out == 2).all()


def test_a_second_kernel_at_the_same_time_is_refused(pool):
    x, out = np.ones((1, 8), F32), np.empty((1, 8), F32)
    with negated("add"):
        with (
            pytest.raises(ValueError, match="one kernel at a time; got rms_norm"),
            negated("rms_norm"),
        ):
            pass
        Stream(pool).add(x, x, out)
        assert (out == -2).all()  # the first one holds


def test_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match=r"gemm_int4.*; got gemm_int5$"), negated("gemm_int5"):
        pass
