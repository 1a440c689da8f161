# SPDX-License-Identifier: Apache-2.0
"""Our engine and llama.cpp on the same GGUF file, in one alternating run: prompt and generation
without a server, streams over HTTP, and a cold start. Ratios to report.md, every round to
results.json.

    python tools/peers/end_to_end.py --build --isa avx2              # llama.cpp, once
    python tools/peers/end_to_end.py FILE.gguf --isa avx2 --out results/
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from child import exit_status
from engines import Kt, LlamaCppEngine, Served, WholeEngine, output_of, serving
from provenance import provenance
from rounds import paired_ratio

PARTS = ("offline", "http", "load")


@dataclass
class Compared:
    """One figure of both engines, a value per round, side by side.

    Attributes:
        name: what was measured.
        unit: of the values.
        ours, theirs: one value per round.
    """

    name: str
    unit: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def line(self) -> str:
        """Of the report's table."""
        ratio = paired_ratio(self.ours, self.theirs)
        return (
            f"| {self.name} | {median(self.ours):.2f} | {median(self.theirs):.2f} {self.unit} | "
            f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] | {ratio.rounds} |"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Build or measure; 0, or 1 with a message."""
    options = parse(arguments)
    if options.build:
        return exit_status(partial(LlamaCppEngine(options.isa).build, options.jobs))
    return exit_status(partial(measure_all, options))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", nargs="?", type=Path, help="the GGUF file")
    add("--build", action="store_true", help="download and build llama.cpp, then stop")
    add("--jobs", type=int, default=cores, help="parallel compilations of --build")
    add("--isa", choices=("avx2", "native"), default="native", help="instructions of both")
    add("--parts", type=lambda text: text.split(","), default=list(PARTS), help=",".join(PARTS))
    add("--rounds", type=int, default=5, help="pairs of which ratios are taken")
    add("--threads", type=int, default=cores, help="of both")
    add("--prompt", type=int, default=512, help="tokens of the prompt alone")
    add("--generate", type=int, default=64, help="tokens generated from an empty context")
    add("--streams", type=numbers, default=[4, 16], help="concurrent HTTP streams")
    add("--requests-per-stream", type=int, default=2)
    add("--input-tokens", type=int, default=256, help="of a stream's prompt")
    add("--output-tokens", type=int, default=64, help="of a stream's answer")
    add("--out", type=Path, default=Path(), help="directory of the results")
    options = parser.parse_args(arguments)
    if not options.build and (options.model is None or not options.model.is_file()):
        parser.error(f"the model must be a GGUF file; got {options.model}")
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"--parts: {part} is none of {', '.join(PARTS)}")
    if min(options.rounds, options.threads, options.prompt, options.generate) < 1:
        parser.error("--rounds, --threads, --prompt and --generate must be at least 1")
    return options


def numbers(text: str) -> list[int]:
    """A comma-separated list of numbers."""
    return [int(word) for word in text.split(",")]


def measure_all(options: argparse.Namespace) -> None:
    """Part after part; results so far are written after each."""
    engines = (Kt(options.isa), LlamaCppEngine(options.isa))
    options.out.mkdir(parents=True, exist_ok=True)
    head = [
        *provenance(),
        f"Model: {options.model.name}, {options.model.stat().st_size / 1e9:.2f} GB",
    ]
    measure = {"offline": offline, "http": http, "load": cold_start}
    found: list[Compared] = []
    for part in options.parts:
        found += measure[part](engines, options)
        write(found, head, options.out)
    print((options.out / "report.md").read_text(), end="")


def alternate(
    engines: tuple[WholeEngine, WholeEngine],
    rounds: int,
    figures: Sequence[Compared],
    run: Callable[[WholeEngine], Sequence[float]],
) -> None:
    """Each round runs both, in the other order every other round; one value per figure."""
    for number in range(rounds):
        for engine in engines if number % 2 == 0 else reversed(engines):
            values = run(engine)
            for figure, value in zip(figures, values, strict=True):
                (figure.ours if engine is engines[0] else figure.theirs).append(value)
            shown = ", ".join(
                f"{figure.name} {value:.2f} {figure.unit}"
                for figure, value in zip(figures, values, strict=True)
            )
            print(f"round {number + 1}: {engine.name}: {shown}", file=sys.stderr, flush=True)


def offline(
    engines: tuple[WholeEngine, WholeEngine], options: argparse.Namespace
) -> list[Compared]:
    """Prompt and generation without a server."""
    figures = [
        Compared(f"prefill {options.prompt}", "tokens/s"),
        Compared(f"decode {options.generate}", "tokens/s"),
    ]

    def run(engine: WholeEngine) -> tuple[float, float]:
        rates = engine.offline(
            options.model,
            prompt=options.prompt,
            generate=options.generate,
            threads=options.threads,
        )
        return rates.prefill, rates.decode

    alternate(engines, options.rounds, figures, run)
    return figures


def http(engines: tuple[WholeEngine, WholeEngine], options: argparse.Namespace) -> list[Compared]:
    """Output tokens per second of concurrent streams, both measured by `kt bench`."""
    found = []
    for streams in options.streams:
        figure = Compared(f"HTTP, {streams} streams", "output tokens/s")

        def run(engine: WholeEngine, streams: int = streams) -> tuple[float]:
            with serving(
                engine,
                options.model,
                slots=streams,
                context=options.input_tokens + options.output_tokens + 256,
                threads=options.threads,
                log=options.out / f"{engine.name}-server.log",
            ) as served:
                return (output_rate(served, streams, options),)

        alternate(engines, options.rounds, [figure], run)
        found.append(figure)
    return found


def output_rate(served: Served, streams: int, options: argparse.Namespace) -> float:
    """Aggregate output tokens per second of all requests of a load.

    Raises:
        PeerError: a request failed.
    """
    result = options.out / "bench.json"
    words = [str(Path(sys.executable).parent / "kt"), "bench", "throughput", "--url", served.url]
    words += [
        "--concurrency",
        str(streams),
        "--requests",
        str(options.requests_per_stream * streams),
    ]
    words += ["--input-tokens", str(options.input_tokens)]
    words += ["--output-tokens", str(options.output_tokens), "--json", str(result)]
    output_of(words)
    (load,) = json.loads(result.read_text())["results"]
    return float(load["output_tokens_per_s"])


def cold_start(
    engines: tuple[WholeEngine, WholeEngine], options: argparse.Namespace
) -> list[Compared]:
    """From the start of a server's process to its first token, the model's file not in the page
    cache. Programs and libraries stay there, for both: what is compared is loading the model."""
    figure = Compared("cold start to first token", "s")

    def run(engine: WholeEngine) -> tuple[float]:
        evict(options.model)
        with serving(
            engine,
            options.model,
            slots=1,
            context=512,
            threads=options.threads,
            log=options.out / f"{engine.name}-server.log",
        ) as served:
            started = time.monotonic()
            first_token(served)
            return (served.ready_seconds + time.monotonic() - started,)

    alternate(engines, options.rounds, [figure], run)
    return [figure]


def first_token(served: Served) -> None:
    """One request for one token, answered."""
    with urllib.request.urlopen(served.url + "/models", timeout=60) as answer:
        model = json.load(answer)["data"][0]["id"]
    body = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
    request = urllib.request.Request(
        served.url + "/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        answer.read()


def evict(path: Path) -> None:
    """Drop a file from the page cache; nobody may have it mapped."""
    with path.open("rb") as file:
        os.fsync(file.fileno())  # pages that are not written yet would stay
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write(found: Sequence[Compared], head: Sequence[str], directory: Path) -> None:
    """report.md and results.json."""
    lines = [
        *head,
        "",
        "| | kt | llama.cpp | ratio [quartiles] | rounds |",
        "|---|---|---|---|---|",
    ]
    lines += [figure.line() for figure in found]
    (directory / "report.md").write_text("\n".join(lines) + "\n")
    values = [vars(figure) for figure in found]
    (directory / "results.json").write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
