# SPDX-License-Identifier: Apache-2.0
"""The AVX-512, VNNI and BF16 targets compiled with SIMDe for AVX2 pass the oracle tests, and tiles
are emulated with their faults: the arithmetic of both is proven on machines that have neither.

What this cannot see: what compilers make of the real instructions (tools/check_isa_leak.py looks),
and speed.
"""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from kt_kernel import isa

TESTS = Path(__file__).parent
KERNEL = TESTS.parent
CXX = shutil.which("g++")
pytestmark = pytest.mark.skipif(CXX is None, reason="needs g++")

TARGETS = ("avx_vnni", "avx512", "avx512_vnni", "avx512_bf16")
# Floating point as in CMakeLists.txt. -O0: compiling takes most of the time.
FLAGS = ("-std=c++20", "-O0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off")
# SIMDe warns of itself, and passes vectors in ways that only matter between compilers.
EMULATION = ("-mavx2", "-mfma", "-mf16c", "-DKT_EMULATED", "-w", "-Wno-psabi")
# Runs pytest on the extension named first instead of the package's own.
RUN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("kt_kernel._core", sys.argv[1])
core = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
import pytest
from kt_kernel import isa
print("available:", *isa.available())
sys.exit(pytest.main(sys.argv[2:]))
"""
# Test -> what it is run with besides a target; all of test_targets.py runs too.
ORACLE = {
    "test_linear.py::test_matches_the_reference_arithmetic": (
        "int8-32-False",
        "int8-0-True",
        "int4-32-False",
        "int4-128-True",
        "bf16-32-False",
    ),
    "test_moe.py::test_matches_the_reference_arithmetic": ("int8-32", "int4-32", "bf16-32"),
    "test_extremes.py::test_sums_of_the_largest_products_are_exact": (
        "int8-1",
        "int8-33",
        "int4-1",
        "int4-33",
    ),
    "test_attention.py::test_attention_matches": ("0-float32", "1-bf16", "2-int8"),
}
FAULTS = (
    "palette",
    "reserved",
    "too many rows",
    "too wide",
    "rows without bytes",
    "ninth tile",
    "shapes",
    "no configuration",
    "unused tile",
    "released",
    "same tile",
)


def compile_object(source: Path, to: Path, *flags: str) -> Path:
    includes = (f"-I{KERNEL / 'include'}", f"-I{KERNEL / 'csrc'}")
    subprocess.run([CXX, *FLAGS, *flags, *includes, "-c", source, "-o", to], check=True)
    return to


def simde() -> Path:
    """The directory of SIMDe's headers."""
    try:
        files = metadata.files("cmeel-simde")
    except metadata.PackageNotFoundError:
        pytest.skip("needs the headers of cmeel-simde")
    header = next(file for file in files if file.match("simde/x86/avx512.h"))
    return Path(header.locate()).parents[2]


def build_tree() -> Path:
    """Where the package's extension was built: its objects and archives are linked again."""
    archives = sorted(KERNEL.glob("build/*/libkt_core.a"), key=lambda path: path.stat().st_mtime)
    if not archives:
        pytest.skip("the package was built elsewhere")
    return archives[-1].parent


@pytest.fixture(scope="module")
def extension(tmp_path_factory) -> Path:
    """The package's extension with the targets emulated."""
    tree, module = build_tree(), tmp_path_factory.mktemp("emulated") / "_core.so"
    targets = compile_object(
        TESTS / "emulated/targets.cpp", module.with_suffix(".o"), *EMULATION, f"-isystem{simde()}"
    )
    # What stands before the archive is taken instead of the archive's member.
    bindings = sorted(tree.rglob("_core.dir/**/*.o"))
    archives = [tree / "libkt_core.a", *tree.glob("libnanobind*.a")]
    link = ("-shared", "-static-libstdc++", "-Wl,--exclude-libs,ALL", "-lpthread")
    subprocess.run([CXX, "-o", module, targets, *bindings, *archives, *link], check=True)
    return module


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in isa.available(), reason="emulation is AVX2 code")
def test_avx512_sources_pass_the_oracle_on_avx2(extension):
    """Products, layers, attention against numpy, exact sums, the same bits as the AVX2 target."""
    tests = ["test_targets.py"]
    for test, cases in ORACLE.items():
        tests += [f"{test}[{target}-{case}]" for target in TARGETS for case in cases]
    env = {key: value for key, value in os.environ.items() if key != "KT_ISA"}  # noqa: TID251  # a child's
    command = [sys.executable, "-c", RUN, extension, "-q", *(TESTS / test for test in tests)]
    command += ["-c", KERNEL.parent.parent / "pyproject.toml", "-p", "no:cacheprovider"]
    command += ["-k", "not detection"]  # which is emulated as well
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    available = result.stdout.partition("available: ")[2].splitlines()[0].split()
    assert set(TARGETS) <= set(available)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> Path:
    program = tmp_path_factory.mktemp("tiles") / "tile_faults"
    compiled = compile_object(TESTS / "emulated/tile_faults.cpp", program.with_suffix(".o"))
    subprocess.run([CXX, compiled, "-o", program], check=True)
    return program


def test_emulated_tiles_multiply(tiles):
    assert subprocess.run([tiles, "well"], check=False).returncode == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_emulated_tiles_abort_where_silicon_faults(tiles, fault):
    result = subprocess.run([tiles, fault], capture_output=True, text=True, check=False)
    assert result.returncode < 0
    assert result.stderr.startswith("tile emulation: #")
