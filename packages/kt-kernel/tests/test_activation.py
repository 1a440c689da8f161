# SPDX-License-Identifier: Apache-2.0
"""Activations: every kind on every target against the oracle, and which numbers a kind takes."""

import math

import numpy as np
import pytest

from kt_kernel import Activation

from . import reference

F32 = np.float32
# A limit of 2 is reached by a good part of the inputs below.
ACTIVATIONS = (
    Activation("silu"),
    Activation("silu_clamped", limit=2.0),
    Activation("silu_post_clamped", limit=2.0),
    Activation("swigluoai"),
    Activation("swigluoai", limit=2.0, alpha=-0.5),
    Activation("gelu"),
    Activation("relu2"),
)


def run(stream, activation, gate, up):
    out = np.full_like(up, -9)
    stream.activate(gate if activation.gated else None, up, out, activation=activation)
    return out


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("columns", [1, 9, 64, 5000])
def test_every_kind_matches(stream, activation, columns, rng):
    for m in (0, 1, 17):
        gate, up = (6 * rng.standard_normal((m, columns), F32) for _ in range(2))
        out = run(stream, activation, gate, up)
        reference.assert_close(out, reference.activate(gate, up, activation))
        assert np.array_equal(run(stream, activation, gate[m // 2 :], up[m // 2 :]), out[m // 2 :])


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_out_may_be_an_input(stream, activation, rng):
    gate, up = rng.standard_normal((2, 3, 13), F32)
    expected = run(stream, activation, gate, up)
    over_up = up.copy()
    stream.activate(gate if activation.gated else None, over_up, over_up, activation=activation)
    assert np.array_equal(over_up, expected)
    if activation.gated:
        stream.activate(gate, up, gate, activation=activation)
        assert np.array_equal(gate, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_the_ends_of_the_range(stream, activation):
    ends = [-1e18, -1e4, -200, -89, -88, -13, -1e-38, -0.0, 0, 1e-38, 13, 88, 89, 1e4, 1e18]
    gate, up = (x.astype(F32).reshape(1, -1) for x in np.meshgrid(ends, ends))
    out = run(stream, activation, gate, up)
    reference.assert_close(out, reference.activate(gate, up, activation))


@pytest.mark.parametrize(
    ("activation", "bad"),
    [(a, bad) for a in ACTIVATIONS for bad in ("gate", "up") if a.gated or bad == "up"],
)
def test_no_clamp_swallows_a_nan(stream, activation, bad, rng):
    inputs = {"gate": rng.standard_normal((3, 19), F32), "up": rng.standard_normal((3, 19), F32)}
    clean = run(stream, activation, **inputs)
    for column in (0, 9, 18):  # in a whole vector and in the ragged last one
        poisoned = {name: x.copy() for name, x in inputs.items()}
        poisoned[bad][1, column] = np.nan
        out = run(stream, activation, **poisoned)
        assert np.isnan(out[1, column])
        out[1, column] = clean[1, column]
        assert np.array_equal(out, clean)


def test_a_name_stands_for_the_activation(stream, rng):
    gate, up = rng.standard_normal((2, 3, 13), F32)
    out = np.empty_like(up)
    stream.activate(gate, up, out, activation="swigluoai")
    gpt_oss = Activation("swigluoai", limit=7.0, alpha=1.702)
    assert np.array_equal(out, run(stream, gpt_oss, gate, up))
    assert Activation("swigluoai") == gpt_oss
    stream.activate(gate, up, out)
    assert np.array_equal(out, run(stream, Activation("silu"), gate, up))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "tanh"}, r"kind must be one of silu, .*, relu2; got 'tanh'"),
        ({"kind": "silu", "limit": 1.0}, r"silu must have no limit; got 1.0"),
        ({"kind": "silu_clamped"}, r"silu_clamped must have a finite limit above 0; got None"),
        ({"kind": "silu_clamped", "limit": 0.0}, r"limit above 0; got 0.0"),
        ({"kind": "silu_post_clamped", "limit": math.inf}, r"limit above 0; got inf"),
        ({"kind": "swigluoai", "limit": math.nan}, r"limit above 0; got nan"),
        ({"kind": "swigluoai", "alpha": math.nan}, r"alpha must be finite; got nan"),
        ({"kind": "gelu", "alpha": 1.0}, r"gelu must have no alpha; got 1.0"),
        # What float32 makes 0 or infinite, and what is no number.
        ({"kind": "silu_clamped", "limit": 1e-50}, r"limit above 0; got 1e-50"),
        ({"kind": "swigluoai", "limit": 1e39}, r"limit above 0; got 1e\+39"),
        ({"kind": "swigluoai", "alpha": 1e39}, r"alpha must be finite; got 1e\+39"),
        ({"kind": "silu_clamped", "limit": "7a"}, r"limit must be a number; got '7a'"),
        ({"kind": "swigluoai", "alpha": [1]}, r"alpha must be a number; got \[1\]"),
    ],
)
def test_impossible_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=rf"^\[activation\] .*{message}$"):
        Activation(**arguments)


def test_a_gate_is_given_exactly_where_there_is_one(stream):
    x = np.ones((2, 8), F32)
    out = np.full_like(x, 7)
    with pytest.raises(ValueError, match=r"^\[activate\] gate must be None for relu2; got one$"):
        stream.activate(x, x, out, activation="relu2")
    with pytest.raises(ValueError, match=r"^\[activate\] gate must be an array for gelu; got None"):
        stream.activate(None, x, out, activation="gelu")
    with pytest.raises(ValueError, match=r"^\[activation\] kind .*; got 'mish'"):
        stream.activate(x, x, out, activation="mish")
    assert (out == 7).all()
