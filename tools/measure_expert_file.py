# SPDX-License-Identifier: Apache-2.0
"""The figures of docs/benchmarks.md about expert files: packing, saving, loading, decoding.

The file lies in the given directory; its file system decides whether mapped pages can be huge.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from kt_kernel import Experts, MoE, ThreadPool, isa

# Qwen3-30B-A3B's layer: 680 MB in int8.
NUM_EXPERTS, HIDDEN_SIZE, INTERMEDIATE_SIZE, TOP_K = 128, 2048, 768, 8
PACKED_AT_ONCE = 16  # experts of the packing measurement: 150 MB of bf16
RUNS = 300
PAGE = 4096
MADV_DONTNEED, MADV_NOHUGEPAGE = 4, 15


def main() -> int:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="where to put a file of 700 MB for a while")
    parser.add_argument("--format", default="int8")
    arguments = parser.parse_args()
    pool = ThreadPool()
    print(f"target {isa.active()}, {pool.num_threads} threads")
    measure_packing(pool)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        measure_file(Path(directory) / "layer.safetensors", arguments.format, pool)
    return 0


def measure_packing(pool: ThreadPool) -> None:
    """From bf16, in wall time and in time of all CPUs (which forgets who else was running)."""
    wide, tall = weights(np.random.default_rng(0))
    gate = np.repeat(wide[None], PACKED_AT_ONCE, axis=0)
    down = np.repeat(tall[None], PACKED_AT_ONCE, axis=0)
    for name in ("int4", "int8", "q4_0", "mxfp4", "bf16"):
        wall, cpu = [], []
        for _ in range(9):
            started, started_cpu = time.perf_counter(), time.process_time()
            Experts.pack(gate, gate, down, format=name, pool=pool, dtype="bf16")
            wall.append(time.perf_counter() - started)
            cpu.append((time.process_time() - started_cpu) / pool.num_threads)
        size = 3 * gate.nbytes / 1e9
        print(
            f"pack bf16 -> {name:6s} {size / min(wall):.2f} GB/s of input at best, median "
            f"{size / np.median(wall):.2f}; by CPU time {size / min(cpu):.2f}"
        )


def measure_file(path: Path, name: str, pool: ThreadPool) -> None:
    """Save, load in every way, and decode from each."""
    experts = Experts.empty(
        NUM_EXPERTS, HIDDEN_SIZE, INTERMEDIATE_SIZE, gate=name, up=name, down=name
    )
    wide, tall = weights(np.random.default_rng(0))
    for expert in range(NUM_EXPERTS):
        experts.put(expert, "gate", wide, dtype="bf16")
        experts.put(expert, "up", wide, dtype="bf16")
        experts.put(expert, "down", tall, dtype="bf16")
    timed("save", experts.nbytes, partial(experts.save, path, pool=pool))
    for mmap in (True, False):
        for verify in (True, False):
            what = f"load {'mapped' if mmap else 'copied'}{', verified' if verify else ''}"
            load = partial(Experts.load, path, pool=pool, mmap=mmap, verify=verify)
            timed(what, experts.nbytes, load)
    small_pages = Experts.load(path, pool=pool)
    use_small_pages(small_pages)
    kinds = {
        "packed here": experts,
        "mapped": Experts.load(path, pool=pool),
        "mapped, 4 KiB pages": small_pages,
        "copied": Experts.load(path, pool=pool, mmap=False),
    }
    measure_decode(kinds, pool)
    print(f"mapped in huge pages: {huge_bytes(path) / experts.nbytes:.0%} (of one mapping)")


def weights(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Normal bf16 numbers as bits: (intermediate, hidden) and (hidden, intermediate)."""
    values = rng.standard_normal((INTERMEDIATE_SIZE, HIDDEN_SIZE), np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    return bits, np.ascontiguousarray(bits.T)


def timed(what: str, size: int, call: Callable[[], object]) -> None:
    """One call: the file is in the page cache, and the second one would find other conditions."""
    started, started_cpu = time.perf_counter(), time.process_time()
    call()
    wall, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    print(f"{what:22s} {wall:6.3f} s ({size / wall / 1e9:.2f} GB/s), {cpu:.3f} s of CPU")


def use_small_pages(experts: Experts) -> None:
    """Map again what is mapped, this time as a file system without huge pages would."""
    begin = experts._core.packed.ctypes.data
    length = -(-experts.nbytes // PAGE) * PAGE
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for advice in (MADV_NOHUGEPAGE, MADV_DONTNEED):
        if madvise(begin, length, advice) != 0:
            raise OSError("madvise was refused")


def huge_bytes(path: Path) -> int:
    """The most bytes of a mapping of `path` that lie in huge pages."""
    found, ours = [0], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            ours = fields[-1] == str(path)
        elif ours and fields[0] == "FilePmdMapped:":
            found.append(int(fields[1]) * 1024)
    return max(found)


def measure_decode(kinds: dict[str, Experts], pool: ThreadPool) -> None:
    """One token, experts drawn anew for each call, the kinds in random order each round."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((1, HIDDEN_SIZE), np.float32)
    factors = np.full((1, TOP_K), 1 / TOP_K, np.float32)
    out = np.empty_like(hidden)
    moes = {
        kind: MoE(experts, top_k=TOP_K, max_tokens=1, pool=pool) for kind, experts in kinds.items()
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(RUNS):
        for kind in rng.permutation(list(kinds)):
            ids = rng.permutation(NUM_EXPERTS)[None, :TOP_K].astype(np.int32)
            started = time.perf_counter()
            moes[kind].forward(hidden, ids, factors, out)
            seconds[kind].append(time.perf_counter() - started)
    for kind, each in seconds.items():
        best, quarter, median = np.quantile(each, [0, 0.25, 0.5])
        rate = TOP_K / NUM_EXPERTS * kinds[kind].nbytes / 1e9
        print(
            f"decode {kind:20s} median {median * 1e3:.2f} ms, quarter {quarter * 1e3:.2f}, best "
            f"{best * 1e3:.2f} ({rate / best:.1f} GB/s)"
        )


if __name__ == "__main__":
    sys.exit(main())
