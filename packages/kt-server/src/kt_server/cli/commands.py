# SPDX-License-Identifier: Apache-2.0
"""The `kt` command: serve, chat, run, bench, cache, doctor. Parses and prints; the work is done
elsewhere.

What takes long to import is imported by the functions that use it.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kt_server import __version__
from kt_server.cli.bench import bench as bench_command
from kt_server.cli.cache import cache as cache_commands
from kt_server.cli.chat import chat as chat_command
from kt_server.cli.doctor import doctor as doctor_command
from kt_server.cli.run import run as run_command
from kt_server.cli.serve import serve as serve_command

app = typer.Typer(
    name="kt",
    help="Mixture-of-Experts language models on the CPUs you have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve_command)
app.command("chat")(chat_command)
app.command("bench")(bench_command)
app.command("run")(run_command)
app.command("doctor")(doctor_command)
app.add_typer(cache_commands, name="cache")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        versions = ", ".join(
            f"{name} {metadata.version(name)}" for name in ("kt-runtime", "kt-kernel", "kt-kvcache")
        )
        typer.echo(f"kt {__version__} ({versions})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions."),
    ] = False,
) -> None:
    pass


def run_app() -> None:
    """Run the command line: what a user got wrong is one line on stderr and exit status 1."""
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        print(f"kt: {error}", file=sys.stderr)
        sys.exit(1)
