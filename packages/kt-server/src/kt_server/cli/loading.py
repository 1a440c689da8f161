# SPDX-License-Identifier: Apache-2.0
"""The options of an engine and its start, for every command that runs a model."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.config import EngineConfig, WeightFormat
from kt_runtime.inspect import resolve_model
from kt_runtime.text import ChatTemplate, Tokenizer
from kt_server.sampling import SamplingDefaults

if TYPE_CHECKING:
    from kt_runtime.engine import Engine

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint directory, a GGUF file, or a demo model's name (kt doctor lists them).",
    ),
]
WeightFormatOption = Annotated[
    WeightFormat, typer.Option(help="How weights are stored; native keeps the checkpoint's own.")
]
MaxModelLenOption = Annotated[
    int | None, typer.Option(help="Longest prompt plus answer, in tokens (default: the model's).")
]
KVMemoryOption = Annotated[float, typer.Option(help="Memory for KV pages, in GB.")]
KVDiskPathOption = Annotated[
    str | None,
    typer.Option(help="Directory that keeps KV pages of prompts and answers between starts."),
]
KVDiskOption = Annotated[
    float, typer.Option(help="Most that --kv-disk-path may take of the disk, in GB.")
]
PackCacheOption = Annotated[
    str | None, typer.Option(help="Directory that keeps packed experts for the next start.")
]
NumThreadsOption = Annotated[
    int | None, typer.Option(help="Compute threads (default: one per physical core).")
]

_REPORT_EVERY_S = 2.0  # between two lines of progress where there is no terminal


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, with the text side of its checkpoint."""

    path: Path
    engine: Engine
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    sampling_defaults: SamplingDefaults


def open_model(name: str, config: EngineConfig) -> ModelFiles:
    """Find (or build) a model, and have the disk begin to read it.

    Raises:
        ValueError: no such model, or not a usable one; the message says which.
    """
    files = ModelFiles.open(resolve_model(name))
    if config.pack_cache is None:  # else the experts may be there already, packed
        files.read_ahead.start()
    return files


def load_model(model: str | ModelFiles, config: EngineConfig) -> LoadedModel:
    """Load a model, named or opened by `open_model`, with progress on stderr.

    The small files go first, so that a checkpoint that cannot be used fails in milliseconds.

    Raises:
        ValueError: as `open_model`.
    """
    files = open_model(model, config) if isinstance(model, str) else model
    path = files.path
    from kt_runtime.engine import Engine  # seconds, which `kt --help` need not take

    tokenizer = Tokenizer.from_pretrained(files)
    chat_template = ChatTemplate.from_pretrained(files)
    sampling_defaults = SamplingDefaults.from_pretrained(path)
    with _LoadingProgress() as progress:
        engine = Engine.from_pretrained(files, config, progress=progress.update)
    return LoadedModel(path, engine, tokenizer, chat_template, sampling_defaults)


class _LoadingProgress:
    """Bytes packed of all: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._started = self._reported = time.monotonic()

    def __enter__(self) -> _LoadingProgress:
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("loading weights"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.add_task("loading", total=None)
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if exception[0] is None:
            self._line(f"loaded in {time.monotonic() - self._started:.1f} s")

    def update(self, done: int, total: int) -> None:
        """Called by the engine while it loads."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        elif time.monotonic() - self._reported >= _REPORT_EVERY_S:
            self._reported = time.monotonic()
            self._line(f"loading weights: {done / 2**20:.0f} of {total / 2**20:.0f} MiB")

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
