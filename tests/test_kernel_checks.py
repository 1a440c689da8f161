# SPDX-License-Identifier: Apache-2.0
"""The checks on kt-kernel's build and benchmarks: they pass now, and each finds what it is for."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"

SOURCE = """
namespace kt::avx2 {
__attribute__((target("avx2,fma"))) void owned(float* x) {
  typedef float F __attribute__((vector_size(32), aligned(4)));
  *(F*)x += *(F*)(x + 8);
}
}  // namespace kt::avx2
#ifdef LEAK
namespace std {
__attribute__((target(LEAK))) void shared(float* x) {
  typedef float F __attribute__((vector_size(64), aligned(4)));
  *(F*)x += *(F*)(x + 16);
}
}  // namespace std
#endif
"""


def run(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / f"{tool}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_build_keeps_instructions_where_they_belong() -> None:
    result = run("check_isa_leak")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("leak", "found"),
    [(None, None), ("avx2", "VEX code in std::shared"), ("avx512f", "EVEX code in std::shared")],
)
def test_a_leaked_instruction_is_found(tmp_path: Path, leak: str | None, found: str | None) -> None:
    source, compiled = tmp_path / "leak.cpp", tmp_path / "leak.o"
    source.write_text(SOURCE)
    flags = [f'-DLEAK="{leak}"'] if leak else []
    command = ["g++", "-std=c++17", "-O2", "-w", *flags, "-c", str(source), "-o", str(compiled)]
    subprocess.run(command, check=True)
    result = run("check_isa_leak", compiled)
    if found is None:
        assert result.returncode == 0, result.stderr
    else:
        assert result.returncode == 1
        assert found in result.stderr
        assert "owned" not in result.stderr


OWN = """
namespace kt::avx_vnni {
void dot() { __asm__("{vex} vpdpbusd %ymm0, %ymm1, %ymm2"); }
}
namespace kt::avx512_vnni {
void dot() { __asm__("vpdpbusd %zmm0, %zmm1, %zmm2"); }
}
namespace kt::avx512_bf16 {
void dot_bf16() { __asm__("vdpbf16ps %zmm0, %zmm1, %zmm2"); }
}
namespace kt::amx {
void dot() { __asm__("tdpbusd %tmm0, %tmm1, %tmm2"); }
}
"""


@pytest.mark.parametrize(
    ("namespace", "into", "found"),
    [
        (None, None, None),
        ("avx512_vnni", "avx512", "VNNI code in kt::avx512::dot"),
        ("avx512_vnni", "avx_vnni_", "VNNI code in kt::avx_vnni_::dot"),
        ("avx512_bf16", "avx512_vnni", "BF16 code in kt::avx512_vnni::dot_bf16"),
        ("amx", "amx_emu", "tile code in kt::amx_emu::dot"),
        ("avx_vnni", "avx2", "VNNI code in kt::avx2::dot"),
    ],
)
def test_each_extension_has_its_namespaces(
    tmp_path: Path, namespace: str | None, into: str | None, found: str | None
) -> None:
    source = OWN if namespace is None else OWN.replace(f"kt::{namespace} ", f"kt::{into} ")
    result = run("check_isa_leak", compiled(tmp_path, source))
    assert (result.returncode, found or "") == (int(found is not None), found or "")
    assert (found or "") in result.stderr


def test_vnni_of_avx512_is_none_of_avx_vnni(tmp_path: Path) -> None:
    source = OWN.replace("{vex} vpdpbusd", "{evex} vpdpbusd")
    result = run("check_isa_leak", compiled(tmp_path, source))
    assert "EVEX code in kt::avx_vnni::dot" in result.stderr


def test_measuring_an_instruction_is_no_use_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    check = importlib.import_module("check_isa_leak").check
    for function, used in (("dot", {"vpdpbusd"}), ("peak_dot", set())):
        source = OWN.replace("void dot()", f"void {function}()")
        _, seen = check([compiled(tmp_path, source)])
        assert seen["avx512_vnni"] == used


CONFIGURE = """
#include <stdint.h>
struct alignas(64) Config { uint8_t head[16]; uint16_t bytes[16]; uint8_t rows[16]; };
namespace kt::amx {
void configure(int rows) {
  Config config = {};
  config.head[0] = 1;
  config.bytes[0] = 64;
  config.rows[0] = static_cast<uint8_t>(rows);
  __asm__ volatile("ldtilecfg %0" : : "m"(OPERAND) : "memory");
}
}  // namespace kt::amx
"""


@pytest.mark.parametrize("told", [True, False])
def test_a_tile_configuration_whose_stores_were_deleted_is_found(
    tmp_path: Path, told: bool
) -> None:
    """As gcc 12 does when the instruction is said to read 8 bytes."""
    operand = "config" if told else "*reinterpret_cast<const uint64_t*>(&config)"
    source = CONFIGURE.replace("OPERAND", operand)
    if not told:
        source = source.replace(' : "memory"', "")
    result = run("check_isa_leak", compiled(tmp_path, source))
    assert ("ldtilecfg of bytes not written in kt::amx::configure" in result.stderr) == (not told)


def compiled(directory: Path, source: str) -> Path:
    path, to = directory / "source.cpp", directory / "source.o"
    path.write_text(source)
    command = ["g++", "-std=c++17", "-O2", "-w", "-c", str(path), "-o", str(to)]
    subprocess.run(command, check=True)
    return to


def test_the_example_of_a_weight_format_compiles(tmp_path: Path) -> None:
    """CONTRIBUTING's struct and registry line, in a copy of the sources, on the AVX2 target."""
    for part in ("include", "csrc"):
        shutil.copytree(ROOT / "packages" / "kt-kernel" / part, tmp_path / part)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    struct = text.partition("```cpp\n")[2].partition("```")[0]
    registered = re.search(r"with `(X\(\w+, (\w+)\))` in `KT_FORMATS`", text)
    assert registered is not None
    line, name = registered.groups()
    assert f"struct {name} " in struct
    with (tmp_path / "csrc/formats/gguf-inl.h").open("a") as formats:
        formats.write(struct)
    registry = tmp_path / "include/kt/formats.h"
    first = "#define KT_FORMATS(X) \\\n"
    assert first in registry.read_text()
    registry.write_text(registry.read_text().replace(first, f"{first}  {line} \\\n"))
    command = ["g++", "-std=c++20", "-fsyntax-only", "-Wall", "-Werror", "-Wno-psabi"]
    command += [f"-I{tmp_path}/include", f"-I{tmp_path}/csrc"]
    subprocess.run([*command, tmp_path / "csrc/targets/avx2.cpp"], check=True)


def test_bindings_release_the_gil_the_safe_way() -> None:
    """With nanobind's guard a daemon thread aborts the process at the interpreter's end (gil.h)."""
    bindings = (ROOT / "packages" / "kt-kernel" / "csrc" / "python").glob("*.cpp")
    assert not [path.name for path in bindings if "gil_scoped_release" in path.read_text()]


@pytest.mark.slow
def test_the_thread_pool_has_no_race() -> None:
    """Also shows that the instrumented builds of `make test-sanitize` configure, build and run, and
    that a planted race is reported."""
    result = run("run_sanitize", "--pool")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "sanitizers: nothing found" in result.stdout


def test_every_mutation_of_a_kernel_still_fits_the_sources() -> None:
    """`make test-mutation` compiles each of them and sees tests fail: too long for every day."""
    result = run("run_mutations", "--list")
    assert result.returncode == 0, result.stdout


def test_every_op_has_a_benchmark() -> None:
    result = run("check_bench_coverage")
    assert result.returncode == 0, result.stderr


def test_an_op_without_a_benchmark_is_found(tmp_path: Path) -> None:
    package = tmp_path / "packages" / "kt-kernel" / "src" / "kt_kernel"
    shutil.copytree(ROOT / "packages" / "kt-kernel" / "src" / "kt_kernel", package)
    shutil.copytree(TOOLS / "benchmarks", tmp_path / "tools" / "benchmarks")
    shutil.copy(TOOLS / "check_bench_coverage.py", tmp_path / "tools")
    ops = (package / "ops.py").read_text()
    marker = "    def activate("
    assert marker in ops
    (package / "ops.py").write_text(
        ops.replace(marker, "    def gated_delta(self) -> None: ...\n\n" + marker)
    )
    script = tmp_path / "tools" / "check_bench_coverage.py"
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "calls gated_delta" in result.stderr
    assert result.stderr.count("\n") == 1
