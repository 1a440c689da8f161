# SPDX-License-Identifier: Apache-2.0
"""What the targets owe each other: the same bits from every integer format, and the tile kernels
at the edges of their tiles. Against the oracle they all stand in test_linear.py and test_moe.py."""

from pathlib import Path

import numpy as np
import pytest

from kt_kernel import Linear, Stream, isa
from kt_kernel.formats import FORMATS

INTEGER = [name for name, facts in FORMATS.items() if facts.activation_mode == "int8_g32"]
# Where the float16 scales of a super-block lie, in 16-bit words.
SCALE_WORDS = {"q4_k": (0, 1), "q5_k": (0, 1), "q6_k": (104,)}
# Around tiles of 16, 32 and 48 rows, and the number from which on tiles are used.
ROWS = (1, 2, 5, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49)


def weights(name, n, k, rng, extreme):
    """Floats, or the bytes of a format that takes no floats; extreme: its largest values."""
    facts = FORMATS[name]
    if facts.takes_floats:
        weight = rng.standard_normal((n, k), np.float32)
        return np.where(weight < 0, np.float32(-1), np.float32(1)) if extreme else weight
    count = k // facts.source_k * facts.source_bytes
    raw = rng.integers(0, 256, (n, count // facts.source_bytes, facts.source_bytes), np.uint8)
    if extreme:
        raw[:] = 255
    for word in SCALE_WORDS[name]:
        raw[..., 2 * word : 2 * word + 2] = np.array([0.01], np.float16).view(np.uint8)
    return raw.reshape(n, count)


def results(linear, x, pool):
    """Target -> output."""
    before, outs = isa.active(), {}
    for name in isa.available():
        isa.force(name)
        outs[name] = np.empty((len(x), linear.out_features), np.float32)
        Stream(pool).linear(x, linear, outs[name])
    isa.force(before)
    return outs


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("format", INTEGER)
def test_integer_formats_give_the_same_bits_on_every_target_with_fma(format, extreme, pool, rng):
    """Dot products are exact and the float epilogue has one order; the scalar target's fma rounds
    twice."""
    linear = Linear.pack(weights(format, 40, 512, rng, extreme), format=format)
    for rows in ROWS:
        x = rng.standard_normal((rows, 512), np.float32)
        if extreme:  # all activations +127, all -127, or any of them
            x = np.sign(x)
            x[0], x[-1] = -1, 1
        outs = results(linear, x, pool)
        scalar = outs.pop("scalar")
        size = np.abs(scalar).max() + 1
        for name, out in outs.items():
            assert np.array_equal(out, next(iter(outs.values()))), (name, rows)
            assert np.abs(out - scalar).max() < 1e-5 * size, (name, rows)


def test_bf16_agrees_between_targets_within_the_rounding_of_sums(pool, rng):
    linear = Linear.pack(rng.standard_normal((40, 333), np.float32), format="bf16")
    for rows in ROWS:
        outs = results(linear, rng.standard_normal((rows, 333), np.float32), pool)
        for name, out in outs.items():
            assert np.abs(out - outs["scalar"]).max() < 1e-4, (name, rows)


def test_required_kernels_are_native():
    if "amx" not in isa.compiled():
        pytest.skip("no x86 targets in this build")
    matrix = isa.matrix()
    for format in ("int8", "int4", "bf16"):
        for target in ("avx2", "avx_vnni", "avx512", "avx512_vnni", "amx", "amx_emu", "scalar"):
            assert matrix[f"gemm_{format}"][target] == target
    assert matrix["gemm_bf16"]["avx512_bf16"] == "avx512_bf16"
    assert matrix["attention"]["amx"] == "avx512"
    assert matrix["attention"]["amx_emu"] == "avx2"
    assert matrix["gemm_q6_k"]["amx"] == "avx512_vnni"


def test_emulation_is_offered_but_never_first():
    for names in (isa.available(), isa.compiled()):
        if "amx_emu" in names:
            assert names[-1] == "amx_emu"
            assert names.index("scalar") < names.index("amx_emu")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux's list of CPU features")
def test_detection_agrees_with_the_operating_system():
    needed = {
        "avx2": {"avx2", "fma", "f16c"},
        "avx_vnni": {"avx2", "fma", "f16c", "avx_vnni"},
        "avx512": {"avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "avx512_vnni": {"avx512bw", "avx512_vnni"},
        "avx512_bf16": {"avx512bw", "avx512_vnni", "avx512_bf16"},
    }
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    for target, names in needed.items():
        if target in isa.compiled():
            assert (target in isa.available()) == (names <= flags)
    if "amx" in isa.available():  # not the other way round: the system may forbid tiles
        assert {"amx_tile", "amx_int8", "amx_bf16"} <= flags
