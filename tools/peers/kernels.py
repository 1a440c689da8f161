# SPDX-License-Identifier: Apache-2.0
"""The same MoE layer in our kernel and its peers, in one alternating run: a table, results.json and
a roofline plot.

    python tools/peers/kernels.py --build              # download and build the peers, once
    python tools/peers/kernels.py --out results/       # measure

A peer may be given its own threads: `--peers llama.cpp,reference,reference@1`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from child import Child, PeerError
from contention import Contention
from kt_kernel import ThreadPool, isa, machine, probe
from registry import OURS, PEERS
from report import COLUMNS, Block, Limits, Row, limits_line, line, title, write_json
from rounds import Measurement, alternate, paired_ratio
from shapes import FORMATS, SHAPES, Format, Shape, sized
from weights import read_weights, write_weights

PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class Contender:
    """A peer with a number of threads."""

    peer: str
    num_threads: int

    def __str__(self) -> str:
        return f"{self.peer}@{self.num_threads}"


@dataclass(frozen=True)
class Running:
    """A contender that has a block's format, loaded."""

    contender: Contender
    method: str
    child: Child


def main(arguments: Sequence[str] | None = None) -> int:
    """Build or measure; 0, or 1 with a message."""
    options = parse(arguments)
    try:
        if options.build:
            for name in peer_names(options):
                PEERS[name].build(options.isa, options.jobs)
            return 0
        measure_all(options)
    except PeerError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--build", action="store_true", help="download and build the peers, then stop")
    add("--jobs", type=int, default=cores, help="parallel compilations of --build")
    add("--shape", choices=SHAPES, default="qwen3-30b")
    add("--formats", type=words, default=["int4", "int8", "bf16"], help="comma-separated")
    add("--batches", type=numbers, default=[1, 4, 32, 128, 512], help="tokens of a call")
    add("--rounds", type=int, default=15, help="pairs of which ratios are taken")
    add("--peers", type=words, default=["llama.cpp", "reference"], help="NAME or NAME@THREADS")
    add("--threads", type=int, default=cores, help="of a peer that has no number of its own")
    add("--isa", choices=("avx2", "native"), default="avx2", help="instructions of ours and ggml")
    add("--memory", type=float, default=2.0, help="GiB of weights per peer; fewer experts if need")
    add("--out", type=Path, default=Path(), help="directory of results.json and roofline.png")
    options = parser.parse_args(arguments)
    for name in options.formats:
        if name not in FORMATS:
            parser.error(f"--formats: {name} is none of {', '.join(FORMATS)}")
    for name in peer_names(options):
        if name not in PEERS:
            parser.error(f"--peers: {name} is none of {', '.join(PEERS)}")
    if options.rounds < 1 or min(options.batches) < 1 or options.threads < 1:
        parser.error("--rounds, --batches and --threads must be at least 1")
    return options


def words(text: str) -> list[str]:
    """A comma-separated list."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """A comma-separated list of numbers."""
    return [int(word) for word in text.split(",")]


def peer_names(options: argparse.Namespace) -> list[str]:
    """Without their threads."""
    return [word.partition("@")[0] for word in options.peers]


def measure_all(options: argparse.Namespace) -> None:
    """Every format in turn; results so far are written after each."""
    draw = plotter()
    contenders = [Contender(OURS, options.threads)]
    for word in options.peers:
        name, _, threads = word.partition("@")
        contenders.append(Contender(name, int(threads or options.threads)))
    options.out.mkdir(parents=True, exist_ok=True)
    blocks = []
    for name in options.formats:
        weight_format = FORMATS[name]
        shape = sized(
            SHAPES[options.shape],
            weight_format,
            int(options.memory * 2**30),
            machine.last_level_cache_bytes(),
        )
        if not weight_format.fits(shape):
            print(f"{shape.name} is not made of whole blocks of {weight_format.blocks}: left out")
            continue
        with tempfile.TemporaryDirectory(prefix="kt-peers-") as directory:
            blocks.append(measure(shape, weight_format, contenders, options, Path(directory)))
        write_json(blocks, options.out / "results.json")
        draw(blocks, options.out / "roofline.png")


def plotter() -> Callable[[Sequence[Block], Path], None]:
    """roofline.draw; asked for before anything is measured, not after."""
    try:
        import roofline
    except ImportError as error:
        raise PeerError(f"the plot needs matplotlib: `pip install matplotlib` ({error})") from error
    return roofline.draw


def measure(
    shape: Shape,
    weight_format: Format,
    contenders: Sequence[Contender],
    options: argparse.Namespace,
    directory: Path,
) -> Block:
    """One format: load every contender that has it, then batch after batch."""
    weights = directory / "weights"
    write_weights(weights, shape, weight_format)
    experts = read_weights(weights, shape, weight_format.blocks)
    print(f"\n{title(shape, options.isa)}", flush=True)
    with ExitStack() as stack:
        running = []
        for contender in contenders:
            peer = PEERS[contender.peer]
            method = peer.method(weight_format)
            if method is None:
                print(f"{contender} has no {weight_format.name}")
                continue
            child = Child(str(contender), peer.command(weight_format, options.isa))
            stack.callback(child.close)
            child.load(
                shape,
                weight_format.blocks,
                weights,
                max_tokens=max(options.batches),
                num_threads=contender.num_threads,
            )
            print(f"{contender}: {child.description}", flush=True)
            running.append(Running(contender, method, child))
        before = limits(options)
        print(f"{limits_line(before)}\n{COLUMNS}", flush=True)
        rows: list[Row] = []
        for num_tokens in options.batches:
            children = [one.child for one in running]
            contention = Contention([child.pid for child in children])
            measured = alternate(
                children, shape, weight_format, experts, num_tokens, options.rounds, directory
            )
            operations = shape.operations(num_tokens)
            batch = batch_rows(running, measured, weight_format, operations, contention.share())
            for row in batch:
                print(line(row), flush=True)
            rows += batch
        after = limits(options)
        print(limits_line(after), flush=True)
    return Block(shape, options.isa, before, after, rows)


def batch_rows(
    running: Sequence[Running],
    measured: Sequence[Measurement],
    weight_format: Format,
    operations: int,
    others: float,
) -> list[Row]:
    """One batch's rows; ours is the first."""
    return [
        Row(
            weight_format.name,
            one.num_tokens,
            this.contender.peer,
            this.method,
            this.contender.num_threads,
            one.seconds,
            one.experts_touched * this.child.bytes_per_expert,
            operations,
            paired_ratio(one.seconds, measured[0].seconds),
            one.error,
            others,
        )
        for this, one in zip(running, measured, strict=True)
    ]


def limits(options: argparse.Namespace) -> Limits:
    """kt_kernel's probes, on the target that ours runs on."""
    if options.isa != "native":
        isa.force(options.isa)
    measured = probe.measure(ThreadPool(options.threads), PROBE_SECONDS)
    rates = (
        measured.read_gb_per_s,
        measured.maddubs_madd_gop_per_s,
        measured.fma_gflop_per_s,
    )
    return Limits(*(rate.all_threads.median if rate else 0.0 for rate in rates))


if __name__ == "__main__":
    sys.exit(main())
