# SPDX-License-Identifier: Apache-2.0
"""`kt cache`: KV pages that servers keep on disk. Prints; the store does the work. Servers that use
the directory meanwhile go on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from kt_runtime.cache.inspection import inspect_store

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
    with inspect_store(root) as store:
        info = store.info()
    pages = sum(space.num_pages for space in info.namespaces)
    rows = {
        "allocated": _gb(info.allocated_bytes),
        "in pages": f"{_gb(info.page_bytes)}, {pages} pages",
        "namespaces": str(len(info.namespaces)),
        "segments": str(info.num_segments),
    }
    if info.unreadable_segments:
        rows["unreadable"] = f"{info.unreadable_segments} segments, to be reused"
    for label, value in rows.items():
        print(f"{label:12s} {value}")


@cache.command()
def ls(root: RootArgument) -> None:
    """One line per namespace: a model with its settings, and a tenant. The newest comes first."""
    with inspect_store(root) as store:
        spaces = store.info().namespaces
    print(f"{'namespace':{_SHOWN_DIGITS}s}   tokens      size  prefixes  last written")
    for space in spaces:
        tokens = space.num_pages * space.page_tokens
        written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(space.newest_ns // 10**9))
        key = space.ns_key.hex()[:_SHOWN_DIGITS]
        print(f"{key}  {tokens:7d}  {_gb(space.num_bytes):>8s}  {space.num_prefixes:8d}  {written}")


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
    with inspect_store(root) as store:
        keys = [space.ns_key for space in store.info().namespaces]
        num_dropped = store.drop(None if namespace is None else _find(keys, namespace))
    print(f"dropped {num_dropped} pages")


@cache.command()
def verify(root: RootArgument) -> None:
    """Read every page and compare its checksums. Exit status 1 if any is damaged."""
    with inspect_store(root) as store:
        result = store.verify()
    print(f"{result.num_pages} pages, {_gb(result.num_bytes)}: {result.bad_pages} damaged")
    if result.bad_pages:
        print("kt cache scrub drops them; a server takes them for pages that are not there")
        raise typer.Exit(1)


@cache.command()
def scrub(root: RootArgument) -> None:
    """Read every page and forget those that are damaged."""
    with inspect_store(root) as store:
        result = store.verify(drop_bad=True)
    print(f"{result.num_pages} pages, {_gb(result.num_bytes)}: {result.bad_pages} dropped")


def _find(keys: list[bytes], digits: str) -> bytes:
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
