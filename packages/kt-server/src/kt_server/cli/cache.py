# SPDX-License-Identifier: Apache-2.0
"""`kt cache`: KV pages that servers keep on disk. Prints; the store does the work. Servers that use
the directory meanwhile go on."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from kt_runtime.cache import on_disk

cache = typer.Typer(
    help="Look into a directory of KV pages (kt serve --kv-disk-path), or drop some of them.",
    no_args_is_help=True,
)

RootArgument = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="A --kv-disk-path.")]
# Digits of a namespace's key that tables show; more than anybody has namespaces for.
_SHOWN_DIGITS = 16


@cache.command()
def stats(root: RootArgument) -> None:
    """What the directory takes and holds."""
    held = on_disk.summarise(root)
    rows = {
        "allocated": _gb(held.allocated_bytes),
        "in pages": f"{_gb(held.page_bytes)}, {held.num_pages} pages of at most {held.num_slots}",
        "namespaces": str(len(held.namespaces)),
        "segments": str(held.num_segments),
    }
    rows["written"] = f"{_gb(held.written_last_day_bytes)} in the last 24 hours"
    if held.num_foreign_segments:
        rows["unusable"] = f"{held.num_foreign_segments} segments, which make room when needed"
    for label, value in rows.items():
        print(f"{label:12s} {value}")


@cache.command()
def ls(root: RootArgument) -> None:
    """One line per namespace: a model with its settings, and a tenant. The newest comes first."""
    namespaces = on_disk.namespaces(root)
    print(f"{'namespace':{_SHOWN_DIGITS}s}   tokens      size  prefixes  last written")
    for key, space in namespaces.items():
        written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(space.newest_ns // 10**9))
        print(
            f"{key.hex()[:_SHOWN_DIGITS]}  {space.num_tokens:7d}  {_gb(space.num_bytes):>8s}  "
            f"{space.num_prefixes:8d}  {written}"
        )


@cache.command()
def drop(
    root: RootArgument,
    namespace: Annotated[
        str | None, typer.Argument(help="The first digits of its key, as ls shows it.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Drop all namespaces.")] = False,
) -> None:
    """Forget a namespace's pages, or all. A server that has them in memory keeps those until it
    ends."""
    if (namespace is None) is not everything:
        raise ValueError("[cache] drop needs a namespace or --all, not both; ls shows them")
    key = b"" if namespace is None else _find(on_disk.namespaces(root), namespace)
    print(f"dropped {on_disk.drop(root, key)} pages")


@cache.command()
def verify(root: RootArgument) -> None:
    """Read every page and compare its checksums. Exit status 1 if any is damaged."""
    result = on_disk.verify(root)
    print(f"{result.num_pages} pages, {_gb(result.num_bytes)}: {len(result.bad)} damaged")
    if result.bad:
        print("kt cache scrub drops them; a server takes them for pages that are not there")
        raise typer.Exit(1)


@cache.command()
def scrub(root: RootArgument) -> None:
    """Read every page and forget those that are damaged."""
    result = on_disk.verify(root, scrub=True)
    print(f"{result.num_pages} pages, {_gb(result.num_bytes)}: {result.num_freed} dropped")


def _find(keys: Iterable[bytes], digits: str) -> bytes:
    """The one key that begins so."""
    found = [key for key in keys if key.hex().startswith(digits.lower())]
    if len(found) != 1 or not digits:
        raise ValueError(
            f"[cache] namespace must be the first digits of exactly one; got {digits!r}, which "
            f"{len(found)} begin with"
        )
    return found[0]


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3f} GB"
