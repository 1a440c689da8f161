# SPDX-License-Identifier: Apache-2.0
"""The documented facts about formats are true of the packed bytes."""

import numpy as np
import pytest

from kt_kernel import Stream
from kt_kernel.formats import FORMATS

from . import cases, gguf_blocks, reference_weights
from .cases import FORMAT_GROUPS
from .sources import Source, quantised

FLOAT_MODES = {"float32": "f32", "f16": "f32", "bf16": "bf16", "fp8": "bf16"}


def test_the_registry_is_what_is_tested():
    assert tuple(FORMATS) == cases.FORMATS
    assert [name for name, facts in FORMATS.items() if facts.takes_floats] == list(cases.ROUNDED)
    assert [name for name, facts in FORMATS.items() if facts.source_k] == list(cases.QUANTISED)
    assert {name for name, facts in FORMATS.items() if facts.group_sizes} == dict(
        cases.INTEGER_GROUPS
    ).keys()


def test_formats_are_listed_from_the_largest_to_the_smallest():
    bits = [facts.bits_per_weight() for facts in FORMATS.values()]
    floats, integers = bits[: len(FLOAT_MODES)], bits[len(FLOAT_MODES) :]
    assert set(list(FORMATS)[: len(FLOAT_MODES)]) == set(FLOAT_MODES)
    assert floats == sorted(floats, reverse=True)
    assert integers == sorted(integers, reverse=True)


def test_activation_mode_belongs_to_the_format():
    modes = {name: weight_format.activation_mode for name, weight_format in FORMATS.items()}
    assert modes == dict.fromkeys(FORMATS, "int8_g32") | FLOAT_MODES
    assert all(reference_weights.mode(name) == mode for name, mode in modes.items())


@pytest.mark.parametrize(("format", "group_size"), FORMAT_GROUPS)
def test_bits_per_weight_are_the_packed_bytes(format, group_size, rng):
    n, k = 64, 256
    facts = FORMATS[format]
    source = Source(np.zeros((n, k), np.float32))
    if not facts.takes_floats:
        source = quantised(format, (n, k), rng)
    bits = facts.bits_per_weight(group_size) if group_size else facts.value_bits
    expected = bits * n * k / 8 + (0 if group_size else facts.header_bits * n / 8)
    spare = 0 if group_size else n // 32 * 32  # bundles round up to 64 bytes
    assert expected <= source.linear(format, group_size).nbytes <= expected + spare


@pytest.mark.parametrize("format", cases.FORMATS)
def test_a_source_is_as_large_as_documented(format, rng):
    facts = FORMATS[format]
    if facts.source_k:
        weight = quantised(format, (3, 256), rng).weight
        assert (weight.itemsize, weight.shape) == (
            1,
            (3, 256 // facts.source_k * facts.source_bytes),
        )
    else:
        with pytest.raises(ValueError, match=rf"{format} must be given floats"):
            Source(np.zeros((3, 256), np.uint8)).linear(format)


def rounded(format, weight):
    """Weights that a format holds after the plainest rounding to it."""
    if format in cases.K_QUANTS:
        return Source(gguf_blocks.quantise(format, weight))
    if format == "fp8":
        import ml_dtypes

        tiles = weight.reshape(len(weight) // 128, 128, -1, 128)
        scales = np.abs(tiles).max((1, 3)) / 448
        codes = (tiles / scales[:, None, :, None]).reshape(weight.shape)
        return Source(codes.astype(ml_dtypes.float8_e4m3fn), scales)
    return Source(weight)


@pytest.mark.parametrize("format", cases.FORMATS)
def test_weight_error_is_the_one_documented(format, pool, rng):
    weight = rng.standard_normal((256, 512), np.float32)
    out = np.empty((512, 256), np.float32)
    # Rows of the identity survive every activation mode, so the product is the packed weight.
    Stream(pool).linear(np.eye(512, dtype=np.float32), rounded(format, weight).linear(format), out)
    measured = np.sqrt(np.mean((out.T - weight) ** 2.0))
    assert measured == pytest.approx(FORMATS[format].weight_error, rel=0.02, abs=1e-7)


def test_bits_of_a_group_size_the_format_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"^\[formats\] group_size of int4 .* got 48$"):
        FORMATS["int4"].bits_per_weight(48)
