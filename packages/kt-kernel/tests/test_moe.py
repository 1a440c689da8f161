# SPDX-License-Identifier: Apache-2.0
"""The MoE op: arithmetic, routing oddities, independence of rows, calls in flight, bad input."""

import gc
import threading

import ml_dtypes
import numpy as np
import pytest
import torch

from kt_kernel import Activation, MoE, ThreadPool
from kt_kernel.formats import FORMATS as DOCUMENTED

from . import reference
from .cases import (
    FLOAT_DTYPES,
    FORMAT_GROUPS,
    FORMATS,
    K_QUANTS,
    MOE,
    ROUNDED,
    MoeCase,
    moe_cases,
    typical_moe,
)
from .moe_layer import MoeLayer

# All formats, and every activation mode before and behind every other one.
MIXED = {
    "int8 and bf16 to int8": {"gate": "int4", "up": "bf16", "down": "q8_0"},
    "bf16 and float to int8": {"gate": "fp8", "up": "float32", "down": "q4_1"},
    "int8 to int8": {"gate": "q4_k", "up": "q6_k", "down": "mxfp4"},
    "float and int8 to int8": {"gate": "f16", "up": "int4_zp", "down": "q5_k"},
    "int8 to bf16": {"gate": "q4_0", "up": "int8", "down": "fp8"},
    "bf16 to float": {"gate": "bf16", "up": "bf16", "down": "f16"},
}
ACTIVATIONS = (
    Activation("silu"),
    Activation("silu_clamped", limit=1.0),
    Activation("silu_post_clamped", limit=0.5),
    Activation("swigluoai"),
    Activation("gelu"),
    Activation("relu2"),
)


@pytest.mark.parametrize(("format", "group_size"), FORMAT_GROUPS)
def test_matches_the_reference_arithmetic(target, format, group_size, pool, rng):
    for case in moe_cases(format):
        layer = MoeLayer(case, rng)
        out = layer.forward(layer.pack(format, pool, group_size), pool)
        reference.assert_close(out, layer.expected(format, group_size))


@pytest.mark.parametrize("format", FORMATS)
def test_more_rows_of_one_expert_than_a_worker_takes_at_once(target, format, pool, rng):
    """Several spans of 128 rows, the last one ragged; one expert gets a single row."""
    sizes = (256, 256) if format in K_QUANTS else (64, 96)
    layer = MoeLayer(MoeCase(3, *sizes, 1, 300), rng)
    layer.topk_ids[:] = 1
    layer.topk_ids[[5, 280]] = [[0], [2]]
    experts = layer.pack(format, pool)
    reference.assert_close(layer.forward(experts, pool), layer.expected(format))


@pytest.mark.parametrize("num_tokens", [12, 13])
def test_as_many_rows_as_long_bands_take_and_one_more(target, num_tokens, rng):
    """Bands of 128 panels, the second one ragged, fill the workspace; those of 32 take over."""
    layer = MoeLayer(MoeCase(8, 64, 1080, 8, num_tokens), rng)
    layer.topk_ids[:] = np.arange(8)
    pool = ThreadPool(1)
    experts = layer.pack("int8", pool)
    reference.assert_close(layer.forward(experts, pool), layer.expected("int8"))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.kind)
@pytest.mark.parametrize("format", MIXED.values(), ids=MIXED)
def test_projections_of_different_formats_with_biases(target, format, activation, pool, rng):
    layer = MoeLayer(MoeCase(3, 256, 256, 2, 19), rng)
    layer.activation = activation
    layer.add_biases(rng)
    layer.topk_ids[3] = [1, 1]
    layer.topk_ids[4] = [-1, 2]
    experts = layer.pack(format, pool)
    reference.assert_close(layer.forward(experts, pool), layer.expected(format))


@pytest.mark.parametrize("format", MIXED.values(), ids=MIXED)
def test_projections_of_different_formats_by_halves(target, format, pool, rng):
    """Resident experts and accumulation, as for one format; a bad row stays alone."""
    layer = MoeLayer(MoeCase(4, 256, 256, 2, 19), rng)
    moe, out = layer.moe(layer.pack(format, pool), pool), np.zeros_like(layer.hidden)
    mask = np.array([True, False, False, True])
    for each in (mask, ~mask):
        moe.set_resident(each)
        moe.forward(layer.hidden, layer.topk_ids, layer.topk_weights, out, accumulate=True)
    value, tolerance = layer.expected(format)
    reference.assert_close(out, reference.Expected(value, 2 * tolerance))
    moe.set_resident(np.zeros(4, bool))
    layer.hidden[2, 100] = np.inf
    bad = np.empty_like(out)
    moe.forward(layer.hidden, layer.topk_ids, layer.topk_weights, bad)
    assert not np.isfinite(bad[2]).any()
    assert np.isfinite(np.delete(bad, 2, axis=0)).all()


@pytest.mark.parametrize("format", ROUNDED)
def test_stays_near_the_unquantised_layer(target, format, pool, rng):
    layer = MoeLayer(MOE[2], rng)
    exact = layer.expected("float32").value
    error = layer.forward(layer.pack(format, pool), pool) - exact
    relative = np.sqrt(np.mean(error**2) / np.mean(exact**2))
    # Five independent roundings, none worse than the weights'; silu passes on at most 1.1 of one.
    assert relative <= 1.1 * 5**0.5 * DOCUMENTED[format].weight_error * 1.5 + 1e-6


@pytest.mark.parametrize("format", FORMATS)
def test_all_tokens_on_one_expert_repeated_ids_and_skipped_slots(target, format, pool, rng):
    layer = MoeLayer(typical_moe(format), rng)
    experts = layer.pack(format, pool)
    layer.topk_ids[:] = 3
    reference.assert_close(layer.forward(experts, pool), layer.expected(format))
    layer.topk_ids[:, 0] = -1
    layer.topk_ids[4] = -1
    out = layer.forward(experts, pool)
    reference.assert_close(out, layer.expected(format))
    assert not out[4].any()


def test_no_token_is_no_work(target, pool, rng):
    layer = MoeLayer(MOE[1], rng)
    out = layer.forward(layer.pack("int4", pool), pool, slice(0, 0))
    assert out.shape == (0, 83)


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_notice_batch_position_or_threads(target, format, pool, rng):
    layer = MoeLayer(typical_moe(format), rng)
    experts = layer.pack(format, pool)
    whole = layer.forward(experts, pool)
    for size in (1, 2, 7, 16):
        parts = [layer.forward(experts, pool, slice(i, i + size)) for i in range(0, 33, size)]
        assert np.array_equal(np.concatenate(parts), whole), f"in calls of {size} rows"
    order = rng.permutation(33)
    assert np.array_equal(layer.forward(experts, pool, order), whole[order])
    for threads in (1, 3):
        assert np.array_equal(layer.forward(experts, ThreadPool(threads)), whole)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("format", FORMATS)
def test_a_bad_row_spoils_itself_only(target, format, poison, pool, rng):
    layer = MoeLayer(typical_moe(format), rng)
    experts = layer.pack(format, pool)
    clean = layer.forward(experts, pool)
    layer.hidden[7, 50] = poison
    out = layer.forward(experts, pool)
    assert not np.isfinite(out[7]).any()
    others = np.arange(33) != 7
    assert np.array_equal(out[others], clean[others])


@pytest.mark.parametrize("out_dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_hidden_and_out_of_every_dtype(target, dtype, out_dtype, pool, rng):
    layer = MoeLayer(MOE[1], rng)
    experts = layer.pack("int8", pool)
    hidden = reference.encode(layer.hidden, dtype)
    layer.hidden = reference.decode(hidden, dtype)
    start = reference.encode(rng.standard_normal(layer.hidden.shape, np.float32), out_dtype)
    value, tolerance = layer.expected("int8")
    moe = layer.moe(experts, pool)
    arguments = hidden, layer.topk_ids, layer.topk_weights
    out = start.copy()
    moe.forward(*arguments, out, dtype="bf16")
    expected = reference.stored(reference.Expected(value, tolerance), out_dtype)
    reference.assert_close(reference.decode(out, out_dtype), expected)

    out, before = start.copy(), reference.decode(start, out_dtype).astype(np.float64)
    moe.forward(*arguments, out, accumulate=True, dtype="bf16")
    total = value + before
    rounding = reference.EPS * (np.abs(value) + np.abs(before))
    expected = reference.stored(reference.Expected(total, tolerance + rounding), out_dtype)
    reference.assert_close(reference.decode(out, out_dtype), expected)


def test_bfloat16_of_torch_and_ml_dtypes_is_the_bits(pool, rng):
    layer = MoeLayer(MOE[1], rng)
    moe = layer.moe(layer.pack("bf16", pool), pool)
    bits = reference.bf16_bits(layer.hidden)
    outs = [np.zeros(bits.shape, np.uint16) for _ in range(3)]
    routing = layer.topk_ids, layer.topk_weights
    moe.forward(bits, *routing, outs[0], dtype="bf16")
    moe.forward(bits.view(ml_dtypes.bfloat16), *routing, outs[1].view(ml_dtypes.bfloat16))
    as_torch = [torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) for x in (bits, outs[2])]
    moe.forward(as_torch[0], *map(torch.from_numpy, routing), as_torch[1])
    assert outs[0].any()
    assert np.array_equal(outs[0], outs[1])
    assert np.array_equal(outs[0], outs[2])


@pytest.mark.parametrize("as_mask", [np.asarray, lambda m: m.astype(np.uint8), torch.from_numpy])
def test_resident_experts_are_skipped_from_the_next_call_on(target, as_mask, pool, rng):
    layer = MoeLayer(MOE[2], rng)
    experts = layer.pack("int8", pool)
    moe = layer.moe(experts, pool)
    whole, out = layer.forward(experts, pool), np.empty_like(layer.hidden)
    mask = rng.random(8) < 0.5
    moe.set_resident(as_mask(mask))
    moe.forward(layer.hidden, layer.topk_ids, layer.topk_weights, out)
    reference.assert_close(out, layer.expected("int8", resident=mask))
    assert not np.array_equal(out, whole)
    # The one contract between CPU and accelerator: the other half, added, makes it whole.
    moe.set_resident(as_mask(~mask))
    moe.forward(layer.hidden, layer.topk_ids, layer.topk_weights, out, accumulate=True)
    value, tolerance = layer.expected("int8")
    reference.assert_close(out, reference.Expected(value, 2 * tolerance))
    moe.set_resident(as_mask(np.zeros(8, bool)))
    moe.forward(layer.hidden, layer.topk_ids, layer.topk_weights, out)
    assert np.array_equal(out, whole)


# --- calls in flight ---------------------------------------------------------------------------


def test_two_in_flight_and_a_third_waits_its_turn(pool, rng):
    layer = MoeLayer(MOE[2], rng)
    experts = layer.pack("int4", pool)
    moe, expected = layer.moe(experts, pool), layer.forward(experts, pool)
    outs = [np.empty_like(layer.hidden) for _ in range(5)]
    arguments = layer.hidden, layer.topk_ids, layer.topk_weights
    tickets = [moe.submit(*arguments, out) for out in outs]
    for ticket in reversed(tickets):
        moe.wait(ticket)
        assert ticket.done()
    for out in outs:
        assert np.array_equal(out, expected)


def test_errors_surface_in_wait_and_the_next_call_works(pool, rng):
    layer = MoeLayer(MOE[1], rng)
    experts = layer.pack("int4", pool)
    moe, out = layer.moe(experts, pool), np.full_like(layer.hidden, 7)
    bad = layer.topk_ids.copy()
    bad[2, 1] = 4
    ticket = moe.submit(layer.hidden, bad, layer.topk_weights, out)
    with pytest.raises(ValueError, match=r"^\[moe[^]]*\] topk_ids must lie in .*; got 4"):
        moe.wait(ticket)
    assert (out == 7).all()
    moe.wait(moe.submit(layer.hidden, layer.topk_ids, layer.topk_weights, out))
    assert np.array_equal(out, layer.forward(experts, pool))


def test_a_dropped_ticket_waits_and_its_arrays_live(pool, rng):
    layer = MoeLayer(MOE[2], rng)
    experts = layer.pack("int4", pool)
    expected, out = layer.forward(experts, pool), np.empty_like(layer.hidden)
    moe = layer.moe(experts, pool)
    moe.submit(layer.hidden.copy(), layer.topk_ids.copy(), layer.topk_weights.copy(), out)
    assert np.array_equal(out, expected)  # the ticket died with the statement, after its call


def test_a_ticket_keeps_the_moe_its_weights_and_its_pool(rng):
    layer = MoeLayer(MOE[2], rng)
    own = ThreadPool(2)
    expected, out = layer.forward(layer.pack("int4", own), own), np.empty_like(layer.hidden)
    moe = layer.moe(layer.pack("int4", own), own)
    ticket = moe.submit(layer.hidden.copy(), layer.topk_ids.copy(), layer.topk_weights.copy(), out)
    del moe, own
    gc.collect()
    ticket.wait()
    assert np.array_equal(out, expected)


def test_calls_from_several_threads_do_not_mix(pool, rng):
    layer = MoeLayer(MOE[2], rng)
    experts = layer.pack("int8", pool)
    moe, whole = layer.moe(experts, pool), layer.forward(experts, pool)
    failures = []

    def work(rows):
        for _ in range(20):
            out = np.empty_like(layer.hidden[rows])
            moe.forward(layer.hidden[rows], layer.topk_ids[rows], layer.topk_weights[rows], out)
            if not np.array_equal(out, whole[rows]):
                failures.append(rows)

    threads = [threading.Thread(target=work, args=(slice(8 * i, 8 * i + 8),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [4, -2, 2**31 - 1, -(2**31)])
def test_ids_outside_the_experts_are_refused_before_anything_is_written(target, bad, pool, rng):
    layer = MoeLayer(MOE[1], rng)
    moe, out = layer.moe(layer.pack("int4", pool), pool), np.full_like(layer.hidden, 7)
    layer.topk_ids[3, 1] = bad
    message = rf"^\[moe\.forward\] topk_ids must lie in \[-1, 4\); got {bad} at row 3, slot 1$"
    with pytest.raises(ValueError, match=message):
        moe.forward(layer.hidden, layer.topk_ids, layer.topk_weights, out)
    assert (out == 7).all()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hidden", lambda x: x.astype(np.float64)),
        ("hidden", lambda x: x[:, :-1].copy()),
        ("hidden", lambda x: x[None]),
        ("hidden", lambda x: x.astype(np.uint16)),
        ("topk_ids", lambda x: x.astype(np.int64)),
        ("topk_ids", lambda x: x[:-1]),
        ("topk_ids", lambda x: np.repeat(x, 2, axis=1)),
        ("topk_weights", lambda x: x.astype(np.float16)),
        ("topk_weights", lambda x: x[:, :1].copy()),
        ("out", lambda x: x[:-1]),
        ("out", lambda x: x.astype(np.float64)),
        ("out", lambda x: x.T.copy().T),
        ("out", lambda x: None),
    ],
)
@pytest.mark.parametrize("call", ["forward", "submit"])
def test_wrong_dtypes_and_shapes_are_refused(call, name, change, pool, rng):
    layer = MoeLayer(MOE[1], rng)
    moe = layer.moe(layer.pack("int4", pool), pool)
    arguments = {
        "hidden": layer.hidden,
        "topk_ids": layer.topk_ids,
        "topk_weights": layer.topk_weights,
        "out": np.empty_like(layer.hidden),
    }
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=rf"^\[moe\.{call}\] {name} must be .*; got "):
        getattr(moe, call)(**arguments)


def test_more_tokens_than_promised_are_refused(pool, rng):
    layer = MoeLayer(MOE[2], rng)
    moe = MoE(layer.pack("int4", pool), top_k=3, max_tokens=32, pool=pool)
    out = np.empty_like(layer.hidden)
    with pytest.raises(ValueError, match=r"^\[moe\.forward\] num_tokens .* 32; got 33$"):
        moe.forward(layer.hidden, layer.topk_ids, layer.topk_weights, out)
    assert (moe.top_k, moe.max_tokens) == (3, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "tanh"}, r"^\[activation\] kind must be .*; got 'tanh'$"),
        ({"top_k": 0}, r"^\[moe\] top_k .*got 0"),
        ({"max_tokens": 0}, r"^\[moe\] .*max_tokens .*got .*0"),
    ],
)
def test_impossible_layers_are_refused(options, message, pool, rng):
    experts = MoeLayer(MOE[1], rng).pack("int4", pool)
    with pytest.raises(ValueError, match=message):
        MoE(experts, **{"top_k": 2, "pool": pool, **options})


def test_a_mask_of_the_wrong_length_is_refused(pool, rng):
    layer = MoeLayer(MOE[1], rng)
    moe = layer.moe(layer.pack("int4", pool), pool)
    with pytest.raises(ValueError, match=r"^\[moe\.set_resident\] mask must be .*; got "):
        moe.set_resident(np.zeros(5, bool))
    with pytest.raises(ValueError, match=r"^\[moe\.set_resident\] mask must be .*; got "):
        moe.set_resident(np.zeros(4, np.int64))
    for dtype in (torch.bool, torch.uint8):
        with pytest.raises(ValueError, match=r"^\[moe\.set_resident\] mask must be .*; got "):
            moe.set_resident(torch.zeros(4, dtype=dtype, device="meta"))
