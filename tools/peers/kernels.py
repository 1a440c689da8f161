# SPDX-License-Identifier: Apache-2.0
"""The same MoE layer in our kernel and its peers, in one alternating run: figures against their
floors and goals (report.md), every round's seconds (results.json), a roofline plot (roofline.png).

    python tools/peers/kernels.py --build                            # the peers, once
    python tools/peers/kernels.py --shape qwen3-30b --out results/   # some six minutes

Formats with the same weight file run together, and each peer once for all of them. A peer may be
given its own threads, and come several times: `--decode-peers reference,reference@1`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from child import Child, PeerError, exit_status
from contention import Contention
from figures import DECODE, PACK, PREFILL, Figure, figures_of, in_order
from kt_kernel import ThreadPool, isa, machine, probe
from packing import pack_rates
from provenance import provenance
from registry import OURS, PEERS
from report import MEASUREMENTS, markdown, measurement, title, write_json
from results import Batch, Block, Limits, Row
from rounds import alternate, spread
from shapes import DEFAULT_FORMATS, FORMATS, SHAPES, Format, Shape, max_error, sized
from weights import Expert, read_weights, write_weights

PROBE_SECONDS = 1.5  # some eight samples of each limit
PROBE_KINDS = {"int8": "maddubs_madd", "fma": "fma"}  # of the fields of Limits
BESIDE_SECONDS = 0.05  # the fewest samples that have a median, next to our run
DEFAULT_MEMORY = 14.0  # GiB: leaves room on the machine of docs/benchmarks.md, which has 24


@dataclass(frozen=True)
class Contender:
    """A peer with one of its methods and a number of threads."""

    peer: str
    method: str
    num_threads: int
    only_decode: bool = False

    def __str__(self) -> str:
        return f"{self.peer} {self.method}@{self.num_threads}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build or measure; 0, or 1 with a message."""
    options = parse(arguments)

    def build_all() -> None:
        for name in dict.fromkeys(peer_names(options)):
            PEERS[name].build(options.isa, options.jobs)

    return exit_status(build_all if options.build else partial(measure_all, options))


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
    add("--formats", type=words, help=f"comma-separated; of {','.join(FORMATS)}")
    add("--batches", type=numbers, default=[1, 4, 512], help="tokens of a call")
    add("--rounds", type=int, default=15, help="pairs of which ratios are taken")
    add("--peers", type=words, default=["llama.cpp"], help="NAME or NAME@THREADS; - for none")
    add(
        "--decode-peers",
        type=words,
        default=["reference", "reference@1"],
        help="the same, for peers whose larger batches would take minutes: one token only",
    )
    add("--threads", type=int, default=cores, help="of all that have no number of their own")
    add("--scaling", help="format to run with one thread as well; default: the first; - for none")
    add("--isa", choices=("avx2", "native"), default="avx2", help="instructions of ours and ggml")
    add("--memory", type=float, default=DEFAULT_MEMORY, help="GiB in all; fewer experts if need")
    add("--out", type=Path, default=Path(), help="directory of the results")
    options = parser.parse_args(arguments)
    options.formats = options.formats or words(DEFAULT_FORMATS[options.shape])
    options.scaling = options.scaling or options.formats[0]
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
    """A comma-separated list; "-" is the empty one."""
    return [] if text == "-" else text.split(",")


def numbers(text: str) -> list[int]:
    """A comma-separated list of numbers."""
    return [int(word) for word in text.split(",")]


def peer_names(options: argparse.Namespace) -> list[str]:
    """Without their threads."""
    return [word.partition("@")[0] for word in (*options.peers, *options.decode_peers)]


def measure_all(options: argparse.Namespace) -> None:
    """Every weight file in turn; results so far are written after each."""
    draw = plotter()
    if options.isa != "native":
        isa.force(options.isa)
    pool = ThreadPool(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    head = [*provenance(), f"Our target: {isa.active()}, {options.threads} threads"]
    packing = pack_figures(options, pool)
    report, blocks = "", []
    for kind in dict.fromkeys(FORMATS[name].blocks for name in options.formats):
        formats = [FORMATS[name] for name in options.formats if FORMATS[name].blocks == kind]
        if not formats[0].fits(SHAPES[options.shape]):
            say(f"{options.shape} is not made of whole blocks of {kind}: left out")
            continue
        with tempfile.TemporaryDirectory(prefix="kt-peers-") as directory:
            blocks.append(measure(formats, options, pool, Path(directory)))
        figures = in_order([*packing, *figures_of(blocks, options.threads)])
        report = markdown(blocks, figures, head)
        (options.out / "report.md").write_text(report)
        write_json(blocks, options.out / "results.json")
        draw(blocks, options.out / "roofline.png")
    print(report, end="")


def plotter() -> Callable[[Sequence[Block], Path], None]:
    """roofline.draw; asked for before anything is measured, not after."""
    try:
        import roofline
    except ImportError as error:
        raise PeerError(f"the plot needs matplotlib: `pip install matplotlib` ({error})") from error
    return roofline.draw


def pack_figures(options: argparse.Namespace, pool: ThreadPool) -> list[Figure]:
    """Packing of int4, if it is among the formats."""
    if "int4" not in options.formats:
        return []
    say("packing bf16 to int4")
    rates = spread(pack_rates(SHAPES[options.shape], "int4", pool, options.rounds))
    return [Figure(PACK, "int4", rates, "wall clock, all threads, GB/s of input")]


def measure(
    formats: Sequence[Format], options: argparse.Namespace, pool: ThreadPool, directory: Path
) -> Block:
    """One weight file: load every contender that has it, then batch after batch."""
    blocks = formats[0].blocks
    contenders = contenders_of(formats, options)
    shape = shape_of(formats, contenders, options)
    weights = directory / "weights"
    write_weights(weights, shape, blocks)
    experts = read_weights(weights, shape, blocks)
    say(title(shape, blocks, options.isa))
    with ExitStack() as stack:
        running = []
        for contender in contenders:
            command = PEERS[contender.peer].command(contender.method, options.isa)
            child = Child(str(contender), command)
            stack.callback(child.close)
            child.load(
                shape,
                blocks,
                weights,
                max_tokens=DECODE if contender.only_decode else max(options.batches),
                num_threads=contender.num_threads,
            )
            say(f"{contender}: {child.description}")
            running.append((contender, child))
        before = limits(pool)
        say(MEASUREMENTS)
        batches = []
        for num_tokens in options.batches:
            taking_part = [one for one in running if num_tokens == 1 or not one[0].only_decode]
            names = ("int8", "fma") if num_tokens == PREFILL else ("read",)
            beside = {name: list[float]() for name in names}
            rows = measure_batch(
                taking_part,
                shape,
                blocks,
                experts,
                num_tokens,
                options.rounds,
                directory,
                partial(sample_limits, pool, beside),
            )
            after = limits(pool)
            batches.append(Batch(num_tokens, before, after, beside, rows))
            before = after
    return Block(shape, options.isa, blocks, batches)


def contenders_of(formats: Sequence[Format], options: argparse.Namespace) -> list[Contender]:
    """Ours first; nobody twice."""
    shape = SHAPES[options.shape]
    found = [Contender(OURS, this.name, options.threads) for this in formats]
    if options.scaling in [this.name for this in formats]:
        found.append(Contender(OURS, options.scaling, 1))
    for only_decode, given in ((False, options.peers), (True, options.decode_peers)):
        for word in given:
            name, _, threads = word.partition("@")
            found += [
                Contender(name, method, int(threads or options.threads), only_decode)
                for this in formats
                for method in PEERS[name].methods(this, shape)
            ]
    return list(dict.fromkeys(found))


def shape_of(
    formats: Sequence[Format], contenders: Sequence[Contender], options: argparse.Namespace
) -> Shape:
    """The layer with as many experts as fit, together with all that hold a copy."""
    budget = options.memory * 2**30
    if free := machine.available_memory_bytes():
        budget = min(budget, 0.7 * free)
    copies = sum(PEERS[contender.peer].copies for contender in contenders)
    bits = max(this.bits_per_weight for this in formats)
    return sized(SHAPES[options.shape], bits, budget / copies, machine.last_level_cache_bytes())


def measure_batch(
    running: Sequence[tuple[Contender, Child]],
    shape: Shape,
    blocks: str,
    experts: list[Expert],
    num_tokens: int,
    rounds: int,
    directory: Path,
    beside: Callable[[], None],
) -> list[Row]:
    """All contenders in turns at one number of tokens, `beside` next to our first one's run."""
    children = [child for _, child in running]
    max_errors = [max_error(contender.method) for contender, _ in running]
    contention = Contention([child.pid for child in children])
    measured = alternate(
        children, max_errors, shape, blocks, experts, num_tokens, rounds, directory, beside
    )
    others = contention.share()
    rows = [
        Row(
            contender.peer,
            contender.method,
            contender.num_threads,
            num_tokens,
            one.seconds,
            one.experts_touched * child.bytes_per_expert,
            shape.operations(num_tokens),
            one.error,
            others,
        )
        for (contender, child), one in zip(running, measured, strict=True)
    ]
    for row in rows:
        say(measurement(row))
    return rows


def limits(pool: ThreadPool) -> Limits:
    """kt_kernel's probes, on the target that ours runs on.

    Raises:
        PeerError: that target has none.
    """
    measured = probe.measure(pool, PROBE_SECONDS)
    read, int8, fma = (
        measured.read_gb_per_s,
        measured.maddubs_madd_gop_per_s,
        measured.fma_gflop_per_s,
    )
    if int8 is None or fma is None:
        raise PeerError(f"{isa.active()} has no instructions whose limits could be measured")
    rates = [limit.all_threads.median for limit in (read, int8, fma)]
    return Limits(*rates, *(limit.scaling for limit in (read, int8, fma)))


def sample_limits(pool: ThreadPool, into: dict[str, list[float]]) -> None:
    """Append one value to each of these fields of Limits."""
    for name, values in into.items():
        if name == "read":
            rate = probe.read_bandwidth(pool, seconds=BESIDE_SECONDS)
        else:
            rate = probe.peak(pool, PROBE_KINDS[name], seconds=BESIDE_SECONDS)
        values.append(rate.median)


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
