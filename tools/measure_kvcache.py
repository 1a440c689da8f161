# SPDX-License-Identifier: Apache-2.0
"""kt-kvcache's speeds as ratios to what the machine can do, measured side by side in one run: rows
for docs/benchmarks.md.

The limits: hashlib's one-shot SHA-256 of the same token bytes, memcpy of the same bytes, and the
drive. Pages are those of Qwen3-30B-A3B in bf16, 16 tokens each; the disk holds ten times what
memory does.

The drive is what plain calls past the page cache (O_DIRECT) reach with the blocks that the store
moves, reads of the same files and writes of a new one: threads in preadv or pwritev, each of which
takes the next block when it has moved one, and has a buffer in huge pages of its own, touched
before. They are as many as a page mover has calls in flight, by threads and by io_uring; the faster
number counts, before and after each pass of the store.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from kt_kvcache import (
    Arena,
    Chain,
    Completion,
    Geometry,
    Group,
    Identity,
    KVStore,
    Lease,
    LoadResult,
    Space,
    StoreConfig,
)
from kt_kvcache.arena import Bytes
from kt_kvcache.native import HAS_CORE
from kt_kvcache.page_mover import open_page_mover, payload_bytes

LAYERS, PAGE_TOKENS, TOKEN_BYTES = 48, 16, 2048
STRIDE = PAGE_TOKENS * TOKEN_BYTES
PAGE_BYTES = LAYERS * STRIDE
NUM_TOKENS = 131072
IDENTITY = Identity(weights="measured", kv_format="bf16")
CHAIN_PAGES = 32  # of a prompt on disk
PROMPTS_LOADING = 2  # at a time: between one and the next the drive would rest
# Blocks in flight: one for each thread of a page mover, or with io_uring all of a prompt.
DEPTHS = (8, CHAIN_PAGES)
HUGE_PAGE = 2 << 20  # of Linux, on x86-64 and mostly on arm64
MEMORY_PAGES = 4 * CHAIN_PAGES
BIG = 256  # pages that no cache holds


def main() -> int:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--directory", type=Path, help="on the drive to measure (default: a temporary one)"
    )
    parser.add_argument("--no-disk", action="store_true", help="leave the drive out")
    parser.add_argument("--repeats", type=int, default=3, help="of each, side by side; medians")
    arguments = parser.parse_args()
    print(f"core: {'yes' if HAS_CORE else 'no'}, {arguments.repeats} repeats\n")
    print("| what | value | spread | floor |\n|---|---|---|---|")
    measure_chain(arguments.repeats)
    measure_index(arguments.repeats)
    measure_copy(arguments.repeats)
    if not arguments.no_disk:
        with tempfile.TemporaryDirectory(prefix="kt-kvcache-", dir=arguments.directory) as name:
            measure_disk(Path(name), arguments.repeats)
    return 0


def measure_chain(repeats: int) -> None:
    """A cold chain, from an array and from a list of ids."""
    ids = np.random.default_rng(0).integers(0, 150_000, NUM_TOKENS).astype(np.uint32)
    as_list, as_bytes = ids.tolist(), ids.tobytes()
    for page_tokens in (64, 16):
        with KVStore.open(config=StoreConfig(1, page_tokens)) as store:
            space = space_of(store, page_tokens, (1,))
            for what, tokens in (("array", ids), ("list", as_list)):
                ratios = side_by_side(
                    partial(space.chain, tokens), partial(hashlib.sha256, as_bytes), repeats
                )
                row(
                    f"chain of 131,072 tokens ({what}), pages of {page_tokens} / one-shot",
                    ratios,
                    "<= 1.5",
                )


def measure_index(repeats: int) -> None:
    """Finding and pinning a prefix of 2,048 pages that nobody holds."""
    num_pages = 2048
    with KVStore.open(config=StoreConfig(num_pages, 64)) as store:
        space = space_of(store, 64, (1,))
        chain = space.chain(np.random.default_rng(0).integers(0, 150_000, num_pages * 64))
        with space.reserve(chain, 0, num_pages) as writer:
            writer.commit(num_pages, after=None)
        acquired, probed = [], []
        for _ in range(20 * repeats):
            start = time.perf_counter()
            lease = space.acquire(chain)
            acquired.append(1e6 * (time.perf_counter() - start))
            lease.release()
            start = time.perf_counter()
            space.probe(chain)
            probed.append(1e6 * (time.perf_counter() - start))
    row("acquire of 2,048 pages, us", acquired, "<= 200", digits=0)
    row("probe of 2,048 pages, us", probed, "", digits=0)


def measure_copy(repeats: int) -> None:
    """Pages between two arenas in another order, and into the mover's buffer with checksums."""
    rng = np.random.default_rng(0)
    source = Arena([rng.integers(0, 256, (BIG, STRIDE), np.uint8, False) for _ in range(LAYERS)])
    sink = Arena.allocate(BIG, [STRIDE] * LAYERS)
    order = [tuple(int(i) for i in rng.permutation(BIG)) for _ in range(2)]
    pages = source.view(order[0], writable=False)
    onto = sink.view(order[1], writable=True)
    flat = rng.integers(0, 256, BIG * PAGE_BYTES, np.uint8, False)
    flat_sink = np.zeros_like(flat)
    # Speeds: the limit's seconds by ours.
    copied = side_by_side(lambda: np.copyto(flat_sink, flat), lambda: pages.copy_to(onto), repeats)
    row("RAM put/get of 256 pages / memcpy, speed", copied, ">= 0.85")

    # A device that takes everything at once leaves of a write what is done to the bytes.
    one = Arena.allocate(1, [STRIDE] * LAYERS).view((0,), writable=True)
    single = [source.view((i,), writable=False) for i in order[0]]
    mover = open_page_mover(1, "threads")  # one run at a time, on the thread that sums
    fd = os.open("/dev/null", os.O_WRONLY)
    batch = (
        np.full(BIG, fd, np.int32),
        np.zeros(BIG, np.uint64),
        np.arange(BIG, dtype=np.uint64),
        payload_bytes(PAGE_BYTES),
    )

    def gather() -> None:
        for page in single:
            page.copy_to(one)

    summed = side_by_side(lambda: mover.write(pages, *batch).result(), gather, repeats)
    row("pages gathered with checksums / without, time", summed, "<= 1.15")
    mover.close()
    os.close(fd)


def measure_disk(directory: Path, repeats: int) -> None:
    """Write-through and loads with verification, by each way of I/O there is, beside the drive."""
    num_chains = 10 * MEMORY_PAGES // CHAIN_PAGES
    num_pages = num_chains * CHAIN_PAGES
    payload = payload_bytes(PAGE_BYTES)
    rng = np.random.default_rng(0)
    arena = Arena(
        [rng.integers(0, 256, (MEMORY_PAGES, STRIDE), np.uint8, False) for _ in range(LAYERS)]
    )
    config = StoreConfig(MEMORY_PAGES, PAGE_TOKENS, disk_bytes=2 * num_pages * payload)
    ways = ways_of_io()
    ratios: dict[tuple[str, str], list[float]] = {}
    speeds: dict[tuple[str, str], list[float]] = {}

    def count(what: str, io: str, seconds: float, raw_seconds: float) -> None:
        speeds.setdefault((what, io), []).append(num_pages * payload / seconds / 1e9)
        ratios.setdefault((what, io), []).append(raw_seconds / seconds)

    # A drive's speed drifts: ours is compared with the mean of the drive's own before and after,
    # in turns that begin with another way of I/O each time.
    for turn in range(repeats):
        for io in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            root = directory / "root"
            setup = replace(config, io=io)
            raw = [raw_store_seconds(directory, num_pages, payload)]
            with KVStore.open(root, config=setup, arena=arena) as store:
                ours = store_seconds(store, num_chains)
            raw.append(raw_store_seconds(directory, num_pages, payload))
            count("store", io, ours, sum(raw) / 2)
            blocks = blocks_of(root, payload)[:num_pages]
            raw = [drive_seconds(blocks, payload, False)]
            with KVStore.open(root, config=setup, arena=arena) as store:
                ours = load_seconds(store, num_chains)
            raw.append(drive_seconds(blocks, payload, False))
            count("load", io, ours, sum(raw) / 2)
            shutil.rmtree(root)
    for what, floor in (("load", ">= 0.85"), ("store", ">= 0.80")):
        for io in ways:
            verified = ", verified" if what == "load" else ""
            row(f"disk {what}{verified}, by {io}, / drive, speed", ratios[what, io], floor)
            row(f"disk {what}, by {io}, GB/s", speeds[what, io], "")


def ways_of_io() -> list[str]:
    """Those that this system lets us use."""
    try:
        open_page_mover(1, "uring").close()
    except (OSError, ValueError):
        return ["threads"]
    return ["threads", "uring"]


def raw_store_seconds(directory: Path, num_pages: int, payload: int) -> float:
    """Writes as many blocks to a new file."""
    return drive_seconds(
        [(directory / "raw", i * payload) for i in range(num_pages)], payload, True
    )


def blocks_of(root: Path, payload: int) -> list[tuple[Path, int]]:
    """All slots of a store's segments."""
    files = sorted(root.rglob("*.kvs"))
    return [(file, i * payload) for file in files for i in range(file.stat().st_size // payload)]


def store_seconds(store: KVStore, num_chains: int) -> float:
    """Until all pages of all chains have been handed to the drive."""
    space = space_of(store, PAGE_TOKENS, [STRIDE] * LAYERS)
    start = time.perf_counter()
    for i, chain in enumerate(chains(space, num_chains)):
        # What memory evicts before it is written is lost: one is on its way, one is made.
        while written_pages(store) < (i - 1) * CHAIN_PAGES:
            time.sleep(0.002)
        with space.reserve(chain, 0, CHAIN_PAGES) as writer:
            writer.commit(CHAIN_PAGES, after=None)
    store.flush(durable=False).result()
    seconds = time.perf_counter() - start
    if written_pages(store) != num_chains * CHAIN_PAGES:
        raise SystemExit(f"only {written_pages(store)} pages were written")
    return seconds


def written_pages(store: KVStore) -> int:
    """Pages that the drive has taken so far."""
    disk = store.stats().disk
    assert disk is not None  # the store has a root
    return disk.counters.written_pages


def load_seconds(store: KVStore, num_chains: int) -> float:
    """Of all loads."""
    space = space_of(store, PAGE_TOKENS, [STRIDE] * LAYERS)
    loading: deque[tuple[Lease, Completion[LoadResult]]] = deque()

    def finish() -> None:
        lease, load = loading.popleft()
        load.result()
        if lease.num_pages != CHAIN_PAGES:
            raise SystemExit(f"only {lease.num_pages} of {CHAIN_PAGES} pages came back")
        lease.release()

    start = time.perf_counter()
    for chain in chains(space, num_chains):
        if len(loading) == PROMPTS_LOADING:
            finish()
        lease = space.acquire(chain)
        loading.append((lease, lease.load()))
    while loading:
        finish()
    return time.perf_counter() - start


def drive_seconds(blocks: Sequence[tuple[Path, int]], size: int, is_write: bool) -> float:
    """Of all blocks past the page cache, by the better number of threads; removes what it wrote."""
    best = float("inf")
    for depth in DEPTHS:
        best = min(best, pass_seconds(blocks, size, is_write, depth))
        if is_write:
            blocks[0][0].unlink()  # the next one finds as little as this one
    return best


def pass_seconds(
    blocks: Sequence[tuple[Path, int]], size: int, is_write: bool, depth: int
) -> float:
    """By so many threads; writes to one file, whose space is taken before, as a segment's is."""
    flags = os.O_DIRECT | (os.O_RDWR | os.O_CREAT if is_write else os.O_RDONLY)
    fds = {path: os.open(path, flags, 0o600) for path in {path for path, _ in blocks}}
    if is_write:
        os.posix_fallocate(fds[blocks[0][0]], 0, len(blocks) * size)
    call = os.pwritev if is_write else os.preadv
    left = iter(blocks)  # of all threads

    def move(buffer: Bytes) -> None:
        for path, offset in left:
            if call(fds[path], [buffer.data], offset) != size:
                raise SystemExit(f"the drive moved less than {size} bytes of {path}")

    buffers = buffers_in_huge_pages(depth, size)
    with ThreadPoolExecutor(depth) as pool:
        start = time.perf_counter()
        list(pool.map(move, buffers))
        seconds = time.perf_counter() - start
    for fd in fds.values():
        os.close(fd)
    return seconds


def buffers_in_huge_pages(num: int, size: int) -> Bytes:
    """(num, size) random bytes, each row in huge pages of its own where the system gives any."""
    step = -(-size // HUGE_PAGE) * HUGE_PAGE
    # Private: what is shared, mmap's default, is shmem and gets no huge pages.
    memory = mmap.mmap(-1, num * step + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    first = -whole.ctypes.data % HUGE_PAGE
    buffers = whole[first : first + num * step].reshape(num, step)[:, :size]
    buffers[...] = np.random.default_rng(0).integers(0, 256, (num, size), np.uint8)
    return buffers


def space_of(store: KVStore, page_tokens: int, strides: Sequence[int]) -> Space:
    """A namespace with a layer of each stride."""
    groups = tuple(Group(f"layer {i}", 1, stride) for i, stride in enumerate(strides))
    return store.space(IDENTITY, Geometry(page_tokens, groups))


def chains(space: Space, num_chains: int) -> Iterator[Chain]:
    """Prompts without a common page."""
    for i in range(num_chains):
        yield space.chain(np.full(CHAIN_PAGES * PAGE_TOKENS, i, np.uint32))


def side_by_side(
    ours: Callable[[], object], limit: Callable[[], object], repeats: int
) -> list[float]:
    """Ratios of seconds, each the best of seven calls that alternate with those of the limit."""
    ratios = []
    for _ in range(repeats):
        best = [float("inf"), float("inf")]
        for _ in range(7):
            for i, call in enumerate((ours, limit)):
                start = time.perf_counter()
                call()
                best[i] = min(best[i], time.perf_counter() - start)
        ratios.append(best[0] / best[1])
    return ratios


def row(what: str, values: Sequence[float], floor: str, digits: int = 2) -> None:
    """Median, least and most."""
    low, median, high = min(values), float(np.median(values)), max(values)
    spread = f"{low:.{digits}f} to {high:.{digits}f}"
    print(f"| {what} | {median:.{digits}f} | {spread} | {floor} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
