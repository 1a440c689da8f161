# SPDX-License-Identifier: Apache-2.0
"""How fast a checkpoint is loaded, beside the two things that bound it: what the disk delivers, and
what the packing threads take when the file is in memory already. Figures for docs/benchmarks.md.

    tools/measure_load.py MODEL.gguf

Nobody else may have the files mapped: the page cache would keep them.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from kt_runtime.assembly import assemble
from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.checkpoint.read_ahead import Stored, read_whole
from kt_runtime.config import EngineConfig

# Requests of this size, so many in flight, are what a disk is fastest with.
_REQUEST = 8 << 20
_IN_FLIGHT = 4
# KV is not what is measured.
_NUM_PAGES = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a line for each of the three rates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a GGUF file or a checkpoint directory")
    parser.add_argument("--rounds", type=int, default=3, help="of each, alternating; the median")
    parser.add_argument("--threads", type=int, help="that pack (default: one per physical core)")
    options = parser.parse_args(arguments)
    tensors = read_whole(ModelFiles.open(options.model).read_ahead.tensors())
    config = EngineConfig(num_pages=_NUM_PAGES, num_threads=options.threads)

    def load() -> None:
        assemble(options.model, config, None)

    def read() -> None:
        read_all(tensors)

    measured: dict[str, list[float]] = {"read": [], "pack": [], "load": []}
    for _ in range(options.rounds):
        evict(tensors)
        measured["read"].append(seconds(read))  # which leaves the files in memory
        measured["pack"].append(seconds(load))
        evict(tensors)
        measured["load"].append(seconds(load))
    report(sum(tensor.nbytes for tensor in tensors), measured)
    return 0


def evict(tensors: Sequence[Stored]) -> None:
    """Drop their files from the page cache."""
    gc.collect()  # a model is a cycle, and its table keeps the file mapped
    for path in {tensor.file for tensor in tensors}:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not written yet would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(tensors: Sequence[Stored]) -> None:
    """Read their bytes, several requests at a time."""
    with ThreadPoolExecutor(_IN_FLIGHT) as readers:
        requests = [
            readers.submit(read_range, tensor.file, tensor.begin + at, tensor.nbytes - at)
            for tensor in tensors
            for at in range(0, tensor.nbytes, _REQUEST)
        ]
        for request in requests:
            request.result()


def read_range(path: Path, begin: int, left: int) -> None:
    """Up to one request's bytes from `begin`."""
    with path.open("rb", buffering=0) as file:
        os.pread(file.fileno(), min(left, _REQUEST), begin)


def seconds(run: Callable[[], None]) -> float:
    """What it takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def report(nbytes: int, measured: dict[str, list[float]]) -> None:
    """A line per rate, the last with what part it is of the slower of the others."""
    rates = {name: nbytes / 1e9 / median(taken) for name, taken in measured.items()}
    print(f"{nbytes / 1e9:.3f} GB of weights, medians of {len(measured['load'])}")
    print(f"read   {rates['read']:.2f} GB/s: from the disk, {_IN_FLIGHT} requests in flight")
    print(f"pack   {rates['pack']:.2f} GB/s: loaded with the files in memory")
    part = rates["load"] / min(rates["read"], rates["pack"])
    print(f"load   {rates['load']:.2f} GB/s: from the disk; {part:.0%} of the slower of the two")


if __name__ == "__main__":
    sys.exit(main())
