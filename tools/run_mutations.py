# SPDX-License-Identifier: Apache-2.0
"""Breaks one primitive of a kernel target at a time and runs that target's tests, which must fail.

Proves the tests, not the kernels. Every mutation is a line of source with one thing wrong, compiled
(half a minute each) in a copy under packages/kt-kernel/build/mutations. Names of mutations as
arguments run those alone; `--list` only checks that all of them still fit the sources. Exit status
0 if every mutation was noticed.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kernel_build import (
    KERNEL,
    ROOT,
    StepFailed,
    build,
    capture,
    check_build,
    make_environment,
    timed,
)

BUILD = KERNEL / "build" / "mutations"
SOURCE = BUILD / "source"
TESTS_FAILED = 1  # pytest's exit status; a crash or an empty selection has another


@dataclass(frozen=True)
class Mutation:
    """One wrong line.

    Attributes:
        name: what is wrong.
        file: below csrc.
        right: text that occurs once in it.
        wrong: what replaces it.
        tests: a test file of the package.
        selection: pytest's -k: which tests must fail, all of them of the mutated target.
    """

    name: str
    file: str
    right: str
    wrong: str
    tests: str
    selection: str


AVX2 = "simd/vec_avx2.h"
MADDUBS = "simd/dot_maddubs.h"
TILES = "kernels/tiles-inl.h"  # as run on emulated tiles
MUTATIONS = (
    Mutation(
        "chain_of_u5_too_long",
        MADDUBS,
        "return Vec::add32(widen(chain<31, 4>(w, a)), widen(chain<31, 4>(w + 4, a + 16)));",
        "return widen(chain<15, 8>(w, a));",
        "test_extremes.py",
        "avx2 and q5_k",
    ),
    Mutation(
        "halves_of_a_byte_swapped",
        AVX2,
        "static I high_nibbles(I x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }",
        "static I high_nibbles(I x) { return low_nibbles(x); }",
        "test_linear.py",
        "avx2 and matches and q4_0",
    ),
    Mutation(
        "sign_of_weights_lost",
        MADDUBS,
        "Vec::sign8(Vec::broadcast4(a + 4 * j), w[j])",
        "Vec::broadcast4(a + 4 * j)",
        "test_linear.py",
        "avx2 and matches and int8",
    ),
    Mutation(
        "offset_added",
        AVX2,
        "return _mm256_sub_epi32(dot, _mm256_madd_epi16(broadcast4(sums), offset));",
        "return _mm256_add_epi32(dot, _mm256_madd_epi16(broadcast4(sums), offset));",
        "test_linear.py",
        "avx2 and matches and int4",
    ),
    Mutation(
        "sub_scales_of_q6_k_of_the_wrong_half",
        MADDUBS,
        "j < 4 ? low : high",
        "j < 6 ? low : high",
        "test_linear.py",
        "avx2 and matches and q6_k",
    ),
    Mutation(
        "bias_of_many_rows_kept",
        MADDUBS,
        "Vec::sub16(product, block.bias_[s % kPlanes][c])",
        "product",
        "test_linear.py",
        "avx2 and matches and int4",
    ),
    Mutation(
        "upper_plane_of_bytes_halved",
        MADDUBS,
        "Vec::madd16(sums[p * 2 + 1], Vec::set1_i(0x00100010))",
        "Vec::madd16(sums[p * 2 + 1], Vec::set1_i(0x00080008))",
        "test_linear.py",
        "avx2 and matches and q8_0",
    ),
    Mutation(
        "sign_of_fp8_lost",
        AVX2,
        "_mm256_set1_epi8(static_cast<char>(0xbf))",
        "_mm256_set1_epi8(static_cast<char>(0x3f))",
        "test_linear.py",
        "avx2 and matches and fp8",
    ),
    Mutation(
        "nan_of_a_power_of_two_lost",
        AVX2,
        "_mm256_or_si256(bits, nan)",
        "bits",
        "test_linear.py",
        "avx2 and every_scale",
    ),
    Mutation(
        "neighbour_left_in_odd_bf16",
        AVX2,
        "_mm256_and_si256(x, _mm256_set1_epi32(0xffff0000))",
        "x",
        "test_linear.py",
        "avx2 and comes_back and bf16",
    ),
    Mutation(
        "ties_of_bf16_round_up",
        AVX2,
        "const I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));",
        "const I odd = _mm256_set1_epi32(1);",
        "test_linear.py",
        "avx2 and ties and bf16",
    ),
    Mutation(
        "one_lane_too_many_stored",
        AVX2,
        "static void store_n(float* p, F x, int n) { _mm256_maskstore_ps(p, first(n), x); }",
        "static void store_n(float* p, F x, int n) { _mm256_maskstore_ps(p, first(n + 1), x); }",
        "test_linear.py",
        "avx2 and nothing_is_written and float32",
    ),
    Mutation(
        "a_lane_lost_in_sums",
        AVX2,
        "return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));",
        "return _mm_cvtss_f32(b);",
        "test_ops.py",
        "avx2 and rms_norm",
    ),
    Mutation(
        "halves_of_a_byte_swapped_without_vectors",
        "simd/vec_scalar.h",
        "static I high_nibbles(I x) { return (x >> 4) & 0x0f0f0f0f; }",
        "static I high_nibbles(I x) { return x & 0x0f0f0f0f; }",
        "test_linear.py",
        "scalar and matches and q4_0",
    ),
    Mutation(
        "rows_above_16_multiplied_as_the_first",
        TILES,
        "product<part>(start, a + first * kBlock, dots + first)",
        "product<part>(start, a, dots + first)",
        "test_linear.py",
        "amx_emu and matches and int8",
    ),
    Mutation(
        "sums_of_other_outputs_left_in_a_tile",
        TILES,
        "if (first) Tile::zero<kSum>();",
        "",
        "test_linear.py",
        "amx_emu and matches and bf16",
    ),
    Mutation(
        "minimum_forgotten",
        "kernels/block_int-inl.h",
        "minimum = operands;",
        "minimum = Vec::zero();",
        "test_linear.py",
        "matches and q4_1",
    ),
    Mutation(
        "looked_up_values_off_by_one",
        "formats/k_quants-inl.h",
        "static_cast<float>(q - 32)",
        "static_cast<float>(q - 31)",
        "test_ops.py",
        "embedding_unpacks and q6_k",
    ),
    Mutation(
        "bits_of_a_six_bit_scale_lost",
        "formats/k_quants-inl.h",
        "(third & 15) | (first >> 6) << 4",
        "(third & 15) | (first >> 7) << 4",
        "test_linear.py",
        "matches and q4_k",
    ),
)


def main() -> int:
    """Run the mutations, even after one that was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [mutation.name for mutation in MUTATIONS]
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(names)}")
    parser.add_argument("--list", action="store_true", help="run nothing, list them")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no mutation is named {', '.join(sorted(unknown))}")
    chosen = [each for each in MUTATIONS if not options.names or each.name in options.names]
    try:
        for mutation in chosen:
            mutated(mutation)
            if options.list:
                print(f"{mutation.name:40s} {mutation.file}")
        if options.list:
            return 0
        verdicts = []
        for number, verdict in enumerate(run(chosen), 1):
            verdicts.append(verdict)
            print(f"[{number:2d}/{len(chosen)}] {verdict}", flush=True)
    except StepFailed as failure:
        print(f"FAILED {failure}")
        return 1
    print("\n=== who noticed\n" + "\n".join(map(str, verdicts)))
    unnoticed = [verdict.name for verdict in verdicts if not verdict.noticed]
    print(f"FAILED: no test noticed {', '.join(unnoticed)}" if unnoticed else "mutations: ok")
    return 1 if unnoticed else 0


@dataclass(frozen=True)
class Verdict:
    """What became of one mutation.

    Attributes:
        name: of the mutation.
        status: pytest's.
        failed: the first test that failed.
        seconds: of compiling and testing it.
    """

    name: str
    status: int
    failed: str
    seconds: float

    @property
    def noticed(self) -> bool:
        """Whether a test failed; a crash is no test."""
        return self.status == TESTS_FAILED

    def __str__(self) -> str:
        outcome = self.failed if self.noticed else f"NOT NOTICED (pytest: {self.status})"
        return f"{self.name:42s} {self.seconds:5.0f} s  {outcome}"


def mutated(mutation: Mutation) -> str:
    """The file's text with one thing wrong.

    Raises:
        StepFailed: the right text is not there once.
    """
    text = (KERNEL / "csrc" / mutation.file).read_text(encoding="utf-8")
    count = text.count(mutation.right)
    if count != 1:
        raise StepFailed(
            f"{mutation.name}: {mutation.file} must hold this once; got it {count} times:\n"
            f"{mutation.right}"
        )
    return text.replace(mutation.right, mutation.wrong)


def run(mutations: list[Mutation]) -> Iterator[Verdict]:
    """The verdicts, each when it is known.

    Raises:
        StepFailed: a test fails without a mutation, or a build does.
    """
    copy_sources()
    with timed("build"):
        compile_kernels()
    python = make_environment(BUILD / "build")
    check_build(python, BUILD / "build")
    with timed("tests, nothing broken"):
        for mutation in mutations:
            status, _ = test(python, mutation)
            if status:
                raise StepFailed(f"{mutation.tests} -k '{mutation.selection}' ends with {status}")
    for mutation in mutations:
        started = time.monotonic()
        file = SOURCE / "csrc" / mutation.file
        original = file.read_text(encoding="utf-8")
        file.write_text(mutated(mutation), encoding="utf-8")
        try:
            compile_kernels()
            outcome = test(python, mutation)
        finally:
            file.write_text(original, encoding="utf-8")
        yield Verdict(mutation.name, *outcome, time.monotonic() - started)


def copy_sources() -> None:
    """Make SOURCE the package's sources; files that are the same stay as they are, and compiled."""
    files = {path.relative_to(KERNEL) for path in KERNEL.rglob("*") if path.is_file()}
    files = {path for path in files if path.parts[0] != "build" and "__pycache__" not in path.parts}
    for path in SOURCE.rglob("*"):
        if path.is_file() and path.relative_to(SOURCE) not in files:
            path.unlink()
    for path in files:
        text, copy = (KERNEL / path).read_bytes(), SOURCE / path
        if not copy.exists() or copy.read_bytes() != text:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(text)


def compile_kernels() -> None:
    """The module as it is in SOURCE, little optimised: compilers are what this waits for."""
    build(SOURCE, BUILD / "build", {"KT_OPTIMIZE": "-Og"}, ["_core"])


def test(python: Path, mutation: Mutation) -> tuple[int, str]:
    """Run the mutation's tests up to the first that fails; pytest's exit status, that test."""
    command = [python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-c", ROOT / "pyproject.toml", "-k", mutation.selection]
    result = capture([*command, KERNEL / "tests" / mutation.tests])
    failed = re.search(r"^FAILED \S*::(\S+)", result.stdout, re.MULTILINE)
    return result.returncode, failed[1] if failed else ""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
