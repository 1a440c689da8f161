# SPDX-License-Identifier: Apache-2.0
"""Fails when compiled kernel code uses instructions outside the namespaces that own them, or lacks
those that a target is for.

A function shared between targets (an inline one of the standard library, say) may be compiled once
per target; the linker keeps one copy, and if that is the AVX one, the portable path dies of SIGILL
on a CPU without AVX. So in what was compiled, before linking and stripping: VEX code (AVX, AVX2,
FMA) only in symbols of the AVX targets, EVEX code (AVX-512) only in those of the AVX-512 targets,
dot products of VNNI and BF16 and tile instructions only in those of theirs. A symbol is a target's
if its name has its namespace.

Of ldtilecfg it also wants all 64 bytes of the operand written before, and its rows by stores of
their own: compilers that do not know what the instruction reads delete such stores.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "packages" / "kt-kernel" / "build"
KVCACHE_BUILD = ROOT / "packages" / "kt-kvcache" / "build"  # there is none without a compiler

_AVX512 = ("avx512", "avx512_vnni", "avx512_bf16", "amx")
OWNERS = {
    "tile": ("amx",),
    "SHA": ("sha_ni",),
    "BF16": ("avx512_bf16",),
    "VNNI": ("avx_vnni", "avx512_vnni", "avx512_bf16"),
    "EVEX": _AVX512,
    "VEX": ("avx2", "avx_vnni", "amx_emu", *_AVX512),
}
# What a target is for: each must be there, in functions of its namespace.
NEEDED = {
    "avx2": ("vpmaddubsw", "vfmadd231ps"),
    "avx_vnni": ("vpdpbusd",),
    "avx512": ("vpmaddubsw", "vfmadd231ps"),
    "avx512_vnni": ("vpdpbusd",),
    "avx512_bf16": ("vdpbf16ps",),
    "amx": ("ldtilecfg", "tileloadd", "tdpbusd", "tdpbf16ps", "tilestored", "tilerelease"),
}
FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
INSTRUCTION = re.compile(r"^\s*[0-9a-f]+:\t((?:[0-9a-f]{2} )+)\s*\t(?:\{\w+\} )?(\S+)\s*(.*)")
EXTENSIONS = {
    "tile": re.compile(r"tile|tdp|ldtilecfg|sttilecfg|tcmm"),
    "SHA": re.compile(r"sha(256|1)"),
    "BF16": re.compile(r"vdpbf16|vcvtne2?ps2?bf16|vcvtneps2bf16"),
    "VNNI": re.compile(r"vpdp"),
}
# A store: its last operand is memory, its first tells the size.
PLACE = re.compile(r"(?:\S+,)?(-?0x[0-9a-f]+)?\(%(\w+)\)$")
VECTOR_BYTES = {"x": 16, "y": 32, "z": 64}
SUFFIX_BYTES = {"b": 1, "w": 2, "l": 4, "q": 8}
REGISTERS = re.compile(  # of 1, 2, 4 and 8 bytes
    r"%(?:(\w+l|[a-d]h|r\d+b)|(r\d+w|[a-d]x|[sd]i|[sb]p)|(e\w+|r\d+d)|(r\w+)),"
)
# Segment and address-size prefixes may stand before a VEX or EVEX prefix; others may not.
PREFIXES = {"26", "2e", "36", "3e", "64", "65", "67"}


def newest_build() -> list[Path]:
    """The archive of core and targets, and the objects of the binding, of the newest build, and
    the objects of kt-kvcache's core.
    """
    archives = sorted(BUILD.glob("*/libkt_core.a"), key=lambda path: path.stat().st_mtime)
    if not archives:
        raise SystemExit(f"no build found under {BUILD.relative_to(ROOT)}; run `make setup`")
    kvcache = sorted(KVCACHE_BUILD.glob("cp*"), key=lambda path: path.stat().st_mtime)[-1:]
    objects = [sorted(build.rglob("_core.dir/**/*.o")) for build in (archives[-1].parent, *kvcache)]
    return [archives[-1], *(path for paths in objects for path in paths)]


class Instruction(NamedTuple):
    """One line of disassembly: its function, demangled, and what it says."""

    function: str
    encoding: list[str]
    mnemonic: str
    operands: str


def instruction_classes(instruction: Instruction) -> list[str]:
    """Which of OWNERS an instruction belongs to; none for the baseline."""
    if EXTENSIONS["tile"].match(instruction.mnemonic):
        return ["tile"]  # VEX-coded without being AVX
    found = [name for name, names in EXTENSIONS.items() if names.match(instruction.mnemonic)]
    lead = next((byte for byte in instruction.encoding if byte not in PREFIXES), "")
    # In 64-bit code these bytes are always prefixes: the old instructions they were are invalid.
    prefix = {"62": "EVEX", "c4": "VEX", "c5": "VEX"}.get(lead)
    return [*found, prefix] if prefix else found


def instructions(path: Path) -> Iterator[Instruction]:
    """Every instruction in a file, in order."""
    command = ["objdump", "-d", "-C", "-w", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        function = ""
        for line in process.stdout:
            if match := FUNCTION.match(line):
                function = match[1]
            elif match := INSTRUCTION.match(line):
                yield Instruction(function, match[1].split(), match[2], match[3])
    if process.returncode != 0:
        raise SystemExit(f"objdump failed on {path}")


def place_of(operands: str) -> tuple[str, int] | None:
    """Register and offset of a last operand in memory."""
    match = PLACE.search(operands)
    return (match[2], int(match[1] or "0", 16)) if match else None


def size_of(instruction: Instruction) -> int:
    """How many bytes a mov stores."""
    if match := re.match(r"%([xyz])mm", instruction.operands):
        return VECTOR_BYTES[match[1]]
    if match := REGISTERS.match(instruction.operands):
        return next(1 << i for i, group in enumerate(match.groups()) if group)
    return SUFFIX_BYTES.get(instruction.mnemonic[-1], 0)


class StackStores:
    """Bytes of the stack that a function has written, by register and offset."""

    def __init__(self) -> None:
        self.wide: set[tuple[str, int]] = set()
        self.narrow: set[tuple[str, int]] = set()

    def see(self, instruction: Instruction) -> None:
        """Remember what a mov writes; anything else writes nothing."""
        place = place_of(instruction.operands)
        if place is None or "," not in instruction.operands or "mov" not in instruction.mnemonic:
            return
        size = size_of(instruction)
        to = self.narrow if size <= 8 else self.wide
        to.update((place[0], place[1] + i) for i in range(size))


def untold_configurations(listing: Iterable[Instruction]) -> Iterator[str]:
    """Functions that load a tile configuration which they have not written whole."""
    function, stores = "", StackStores()
    for instruction in listing:
        if instruction.function != function:
            function, stores = instruction.function, StackStores()
        stores.see(instruction)
        if instruction.mnemonic != "ldtilecfg":
            continue
        place = place_of(instruction.operands)
        register, offset = place if place is not None else ("", 0)
        rows = {(register, offset + i) for i in range(48, 56)}
        whole = {(register, offset + i) for i in range(64)}
        if not (whole <= stores.narrow | stores.wide and rows & stores.narrow):
            yield function


def check(paths: list[Path]) -> tuple[set[str], dict[str, set[str]]]:
    """(faults as text, mnemonics of each target's own instructions)."""
    faults: set[str] = set()
    seen: dict[str, set[str]] = {target: set() for target in NEEDED}
    for path in paths:
        listing = list(instructions(path))
        for instruction in listing:
            for kind in instruction_classes(instruction):
                owners = [
                    name
                    for name in OWNERS[kind]
                    if f"kt::{name}::" in instruction.function
                    or f"kt::kvcache::{name}::" in instruction.function
                ]
                for owner in owners:
                    if "::peak_" not in instruction.function:  # a probe is no use of it
                        seen.setdefault(owner, set()).add(instruction.mnemonic)
                if not owners:
                    where = instruction.function or "no function"
                    faults.add(f"{path.name}: {kind} code in {where}")
        faults.update(
            f"{path.name}: ldtilecfg of bytes not written in {function}"
            for function in untold_configurations(listing)
        )
    return faults, seen


def main(arguments: list[str]) -> int:
    """Check the files named, or the newest build, which must have every target's instructions; list
    faults on stderr, 1 if there are any.
    """
    faults, seen = check([Path(name) for name in arguments] or newest_build())
    if not arguments:
        faults.update(
            f"no {mnemonic} in kt::{target}"
            for target, needed in NEEDED.items()
            for mnemonic in needed
            if mnemonic not in seen[target]
        )
    print("\n".join(sorted(faults)), file=sys.stderr, end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
