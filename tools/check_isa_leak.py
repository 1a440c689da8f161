# SPDX-License-Identifier: Apache-2.0
"""Fails when compiled kernel code uses instructions outside the namespaces that own them.

A function shared between targets (an inline one of the standard library, say) may be compiled once
per target; the linker keeps one copy, and if that is the AVX one, the portable path dies of SIGILL
on a CPU without AVX. So in what was compiled, before linking and stripping: VEX code (AVX, AVX2,
FMA) only in symbols of the AVX targets, EVEX code (AVX-512) only in those of the AVX-512 targets,
tile instructions only in those of AMX. A symbol is a target's if its name has its namespace.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "packages" / "kt-kernel" / "build"

_AVX512 = ("avx512", "avx512_vnni", "amx")
OWNERS = {"tile": ("amx",), "EVEX": _AVX512, "VEX": ("avx2", "avx_vnni", *_AVX512)}
FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
INSTRUCTION = re.compile(r"^\s*[0-9a-f]+:\t((?:[0-9a-f]{2} )+)\s*\t(\S+)")
TILE = re.compile(r"tile|tdp|ldtilecfg|sttilecfg|tcmm")
# Segment and address-size prefixes may stand before a VEX or EVEX prefix; others may not.
PREFIXES = {"26", "2e", "36", "3e", "64", "65", "67"}


def newest_build() -> list[Path]:
    """The archive of core and targets, and the objects of the binding, of the newest build."""
    archives = sorted(BUILD.glob("*/libkt_core.a"), key=lambda path: path.stat().st_mtime)
    if not archives:
        raise SystemExit(f"no build found under {BUILD.relative_to(ROOT)}; run `make setup`")
    return [archives[-1], *sorted(archives[-1].parent.rglob("_core.dir/**/*.o"))]


def instruction_class(encoding: list[str], mnemonic: str) -> str | None:
    """Which of OWNERS an instruction belongs to; None for the baseline."""
    if TILE.match(mnemonic):
        return "tile"
    lead = next((byte for byte in encoding if byte not in PREFIXES), "")
    # In 64-bit code these bytes are always prefixes: the old instructions they were are invalid.
    return {"62": "EVEX", "c4": "VEX", "c5": "VEX"}.get(lead)


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """(demangled function, instruction class) of every non-baseline instruction in a file."""
    command = ["objdump", "-d", "-C", "-w", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        function = ""
        for line in process.stdout:
            if match := FUNCTION.match(line):
                function = match[1]
            elif match := INSTRUCTION.match(line):
                kind = instruction_class(match[1].split(), match[2])
                if kind is not None:
                    yield function, kind
    if process.returncode != 0:
        raise SystemExit(f"objdump failed on {path}")


def check(paths: list[Path]) -> tuple[set[str], set[str]]:
    """(leaks as text, targets seen with instructions of their own)."""
    leaks, seen = set(), set()
    for path in paths:
        for function, kind in instructions(path):
            owners = [target for target in OWNERS[kind] if f"kt::{target}::" in function]
            seen.update(owners)
            if not owners:
                leaks.add(f"{path.name}: {kind} code in {function or 'no function'}")
    return leaks, seen


def main(arguments: list[str]) -> int:
    """Check the files named, or the newest build; list leaks on stderr, 1 if there are any."""
    leaks, seen = check([Path(name) for name in arguments] or newest_build())
    print("\n".join(sorted(leaks)), file=sys.stderr, end="\n" if leaks else "")
    if not arguments and "avx2" not in seen:
        print("no AVX2 code in kt::avx2: is this the right build?", file=sys.stderr)
        return 1
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
