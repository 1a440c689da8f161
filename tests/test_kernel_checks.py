# SPDX-License-Identifier: Apache-2.0
"""The checks on kt-kernel's build and benchmarks: they pass now, and each finds what it is for."""

from __future__ import annotations

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
