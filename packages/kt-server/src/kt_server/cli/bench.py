# SPDX-License-Identifier: Apache-2.0
"""`kt bench`: options, output files. What is measured, and how, is in kt_server.bench."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from kt_server.bench.choices import Endpoint, Mode

_FILE_WIDTH = 200


def bench(
    mode: Annotated[
        Mode,
        typer.Argument(
            help="latency: one stream. throughput: as many as --concurrency allows. prefix: a "
            "shared prefix, computed and reused. concurrency: each number of streams in turn."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Served for the measurement; not with --url."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible server that runs already.")
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option("--model", help="Its model's name in the API (default: the first it lists)."),
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="Sent as bearer token.")] = None,
    endpoint: Annotated[Endpoint, typer.Option(help="Which API is asked.")] = "completions",
    input_tokens: Annotated[int, typer.Option(min=1, help="Tokens per prompt.")] = 256,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer.")] = 64,
    requests: Annotated[int, typer.Option(min=1, help="Requests of each load.")] = 16,
    concurrency: Annotated[
        str, typer.Option(help="Numbers of streams; throughput takes the largest.")
    ] = "1,2,4,8,16",
    seed: Annotated[int, typer.Option(help="Of the prompts' words.")] = 0,
    ignore_eos: Annotated[
        bool, typer.Option(help="Ask for exactly --output-tokens; not every server can.")
    ] = True,
    ttft_goal_ms: Annotated[
        float | None, typer.Option(help="Goodput counts requests that start within this.")
    ] = None,
    tpot_goal_ms: Annotated[
        float | None, typer.Option(help="Goodput counts requests with this time per token.")
    ] = None,
    serve_args: Annotated[
        str, typer.Option(help='Options of kt serve for MODEL, e.g. "--weight-format int8".')
    ] = "",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures and every request.")
    ] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Write a picture.")] = None,
) -> None:
    """Measure a server as its clients see it. Exit status 1 if a request failed."""
    # aiohttp and more, which the other commands need not wait for.
    import asyncio

    from rich.console import Console

    from kt_server.bench.local_server import LocalServer, local_server
    from kt_server.bench.measure import as_json, measure
    from kt_server.bench.modes import Settings
    from kt_server.bench.plot import check_plotting, plot_results
    from kt_server.bench.summary import Goal
    from kt_server.bench.table import print_results

    if (model is None) == (url is None):
        raise ValueError("[bench] either MODEL or --url must be given; got both or neither")
    # What cannot be kept is better known before minutes are spent on it.
    for option, file in (("--json", json_file), ("--plot", plot_file)):
        if file is not None and not file.absolute().parent.is_dir():
            raise ValueError(f"[bench] the directory of {option} must exist; got {file}")
    if plot_file is not None:
        check_plotting()
    settings = Settings(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        num_requests=requests,
        concurrency=parse_concurrency(concurrency),
        seed=seed,
        goal=Goal(ttft_goal_ms, tpot_goal_ms),
    )
    server = (
        nullcontext(LocalServer(_base_url(url), ()))
        if url is not None
        else local_server(model or "", shlex.split(serve_args))
    )
    with server as running:
        for line in running.lines:
            print(line)
        name, results = asyncio.run(
            measure(mode, running.url, model_name, api_key, endpoint, ignore_eos, settings)
        )
    console = Console()
    # Without a terminal there is no width to fit into.
    print_results(results, console if console.is_terminal else Console(width=_FILE_WIDTH))
    if json_file is not None:
        target = {"url": url, "model": name, "endpoint": endpoint, "about": list(running.lines)}
        json_file.write_bytes(as_json(mode, target, settings, results))
    if plot_file is not None:
        plot_results(results, plot_file)
    if any(result.summary.num_failed for result in results):
        raise typer.Exit(1)


def parse_concurrency(text: str) -> tuple[int, ...]:
    """ "1,2,4" as numbers.

    Raises:
        ValueError: not numbers of at least 1.
    """
    try:
        numbers = tuple(int(item) for item in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ValueError(f"[bench] concurrency must be numbers like 1,2,4; got {text!r}")
    return numbers


def _base_url(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")
