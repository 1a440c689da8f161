# SPDX-License-Identifier: Apache-2.0
"""The documented facts about formats are true of the packed bytes."""

import numpy as np
import pytest

from kt_kernel import Linear, Stream
from kt_kernel.formats import FORMATS

from .cases import FORMAT_GROUPS
from .cases import FORMATS as CASE_FORMATS


def test_activation_mode_belongs_to_the_format():
    modes = {name: weight_format.activation_mode for name, weight_format in FORMATS.items()}
    floats = {"float32": "f32", "f16": "f32", "bf16": "bf16", "fp8": "bf16"}
    assert modes == dict.fromkeys(FORMATS, "int8_g32") | floats


@pytest.mark.parametrize(("format", "group_size"), FORMAT_GROUPS)
def test_bits_per_weight_are_the_packed_bytes(format, group_size):
    n, k = 64, 256
    linear = Linear.pack(np.zeros((n, k), np.float32), format=format, group_size=group_size)
    expected = FORMATS[format].bits_per_weight(group_size) * n * k / 8
    assert expected <= linear.nbytes <= expected + 2 * 64 * n / 8  # header and panel round up


@pytest.mark.parametrize("format", CASE_FORMATS)
def test_weight_error_is_the_one_documented(format, pool, rng):
    weight = rng.standard_normal((256, 256), np.float32)
    out = np.empty((256, 256), np.float32)
    # Rows of the identity survive every activation mode, so the product is the packed weight.
    linear = Linear.pack(weight, format=format, group_size=32)
    Stream(pool).linear(np.eye(256, dtype=np.float32), linear, out)
    measured = np.sqrt(np.mean((out.T - weight) ** 2.0))
    assert measured == pytest.approx(FORMATS[format].weight_error, rel=0.1, abs=1e-7)


def test_bits_of_a_group_size_the_format_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"^\[formats\] group_size of int4 .* got 48$"):
        FORMATS["int4"].bits_per_weight(48)
