# SPDX-License-Identifier: Apache-2.0
"""The static self-test binary: needs nothing, covers every kernel, and its hashes agree where they
must.
"""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

from kt_kernel import isa
from kt_kernel.formats import FORMATS

BUILDS = Path(__file__).parent.parent / "build"

Hashes = Mapping[tuple[str, str], Mapping[str, str]]  # (op, format) -> target -> hash


@pytest.fixture(scope="module")
def binary() -> Path:
    builds = sorted(BUILDS.glob("cp*/"), key=lambda path: path.stat().st_mtime)
    if not builds:
        pytest.skip("the package was not built here")
    command = [sys.executable, "-m", "cmake", "--build", builds[-1], "--target", "kernel-selftest"]
    subprocess.run(command, check=True, capture_output=True)
    return builds[-1] / "kernel-selftest"


@pytest.fixture(scope="module")
def hashes(binary) -> Hashes:
    found = defaultdict(dict)
    # No environment: it reads none, and needs no library path.
    result = subprocess.run([binary], check=True, capture_output=True, text=True, env={})
    for line in result.stdout.splitlines():
        op, format, target, value = line.split()
        assert target not in found[op, format]
        found[op, format][target] = value
    return found


def test_it_is_static(binary):
    listing = subprocess.run(["objdump", "-p", binary], check=True, capture_output=True, text=True)
    assert "NEEDED" not in listing.stdout
    assert "INTERP" not in listing.stdout


def test_every_kernel_of_every_target_is_there(hashes):
    for targets in hashes.values():
        assert list(targets) == isa.available()
    by_format = {"gemm", "pack", "pack_floats"}
    ran = {op for op, _ in hashes} - by_format
    ran |= {f"{op}_{name}" for op, name in hashes if op in by_format}
    ran |= {"route"} if {"route_ids", "route_weights"} <= ran else set()
    assert set(isa.kernels()) <= ran


def test_integers_are_the_same_on_all_targets(hashes):
    exact = {("gemm", name) for name, each in FORMATS.items() if each.activation_mode == "int8_g32"}
    exact |= {key for key in hashes if key[0] in ("pack", "add", "embedding", "route_ids")}
    for key in exact:
        assert len(set(hashes[key].values())) == 1, key


def test_different_work_has_different_hashes(hashes):
    for target in isa.available():
        seen = defaultdict(list)
        for key, values in hashes.items():
            seen[values[target]].append(key)
        repeated = [sorted(keys) for keys in seen.values() if len(keys) > 1]
        # Attention in splits that are merged is, bit for bit, attention at once.
        kinds = ("bf16", "f16", "f32", "int8")
        assert sorted(repeated) == [
            [("attention", kind), ("merge_attention", kind)] for kind in kinds
        ]


def test_it_ends_the_same_way_twice(binary, hashes):
    again = subprocess.run([binary], check=True, capture_output=True, text=True)
    assert {line.split()[3] for line in again.stdout.splitlines()} == {
        value for values in hashes.values() for value in values.values()
    }
