# SPDX-License-Identifier: Apache-2.0
"""The options of an engine and its start, for every command that runs a model."""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.config import EngineConfig, WeightFormat
from kt_runtime.inspect import resolve_model

if TYPE_CHECKING:
    from rich.progress import Progress

    from kt_runtime.engine import Engine
    from kt_runtime.loading import PackedModel
    from kt_runtime.text import ChatTemplate, Tokenizer
    from kt_server.sampling import SamplingDefaults

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


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model whose weights are being packed, by another thread."""

    files: ModelFiles
    config: EngineConfig
    packed: Future[PackedModel]
    progress: LoadingProgress


def open_model(name: str, config: EngineConfig) -> OpenedModel:
    """Find (or build) a model and begin to load it: the caller has time to import the rest.

    Raises:
        ValueError: no such model, or not a usable one; the message says which.
    """
    files = ModelFiles.open(resolve_model(name))
    if config.pack_cache is None:  # else little of them may be needed
        files.read_ahead.start()
    from kt_runtime.loading import start_packing  # with numpy: the disk need not wait for that

    progress = LoadingProgress()
    return OpenedModel(files, config, start_packing(files, config, progress.update), progress)


def load_model(name: str, config: EngineConfig) -> LoadedModel:
    """`open_model` and `finish_loading`."""
    return finish_loading(open_model(name, config))


def finish_loading(model: OpenedModel) -> LoadedModel:
    """Wait for the weights, with progress on stderr; meanwhile read the rest.

    Raises:
        ValueError: as `open_model`.
    """
    with model.progress:
        from kt_runtime.text import ChatTemplate, Tokenizer
        from kt_server.sampling import SamplingDefaults

        files, path = model.files, model.files.path
        tokenizer = Tokenizer.from_pretrained(files)
        chat_template = ChatTemplate.from_pretrained(files)
        sampling_defaults = SamplingDefaults.from_pretrained(path)
        from kt_runtime.engine import Engine  # seconds, in which the other thread packs

        engine = Engine.from_pretrained(model.packed, model.config)
    return LoadedModel(path, engine, tokenizer, chat_template, sampling_defaults)


class LoadingProgress:
    """Bytes packed of all: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._started = self._reported = time.monotonic()

    def __enter__(self) -> LoadingProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            bar = Progress(
                TextColumn("loading weights"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            bar.add_task("loading", total=None)
            bar.start()
            self._bar = bar
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if exception[0] is None:
            self._line(f"loaded in {time.monotonic() - self._started:.1f} s")

    def update(self, done: int, total: int) -> None:
        """Called by the thread that packs."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        elif time.monotonic() - self._reported >= _REPORT_EVERY_S:
            self._reported = time.monotonic()
            self._line(f"loading weights: {done / 2**20:.0f} of {total / 2**20:.0f} MiB")

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
