# SPDX-License-Identifier: Apache-2.0
"""Packs a model's weights, in a thread of its own where the caller has something else to do: import
torch, say, which this does not, or build the tokenizer. Knows no KV and runs no model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kt_runtime.checkpoint.checkpoint import Checkpoint, open_checkpoint
from kt_runtime.checkpoint.fingerprint import Fingerprint
from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.config import EngineConfig
from kt_runtime.models.registry import load_model
from kt_runtime.protocols import CausalLM, Packer

if TYPE_CHECKING:
    from kt_kernel import ThreadPool

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A model that Ops of the config's backend can run.

    Attributes:
        checkpoint: what it was built from.
        fingerprint: tells its files from others.
        model: its weights, packed.
        pool: the threads that packed them and will compute; None for the backend "torch", which
            has its own.
    """

    checkpoint: Checkpoint
    fingerprint: Fingerprint
    model: CausalLM
    pool: ThreadPool | None


def pack_model(
    path: str | Path | ModelFiles, config: EngineConfig, progress: Progress | None = None
) -> PackedModel:
    """Read and pack all weights.

    Args:
        path: a Hugging Face directory or a GGUF file, or its opened files.
        config: names the backend and the weights' format.
        progress: called with (bytes packed so far, bytes in all).

    Raises:
        ValueError: `[checkpoint] …`, `[gguf] …` or `[config] …`.
    """
    files = ModelFiles.open(path)
    if config.pack_cache is None:  # else the experts may be there already, packed
        files.read_ahead.start()

    def packed(done: int, total: int) -> None:
        files.read_ahead.packed(done)
        if progress is not None:
            progress(done, total)

    try:
        checkpoint = open_checkpoint(files)
        fingerprint = Fingerprint(files, config.model_identity)
        pool = _pool(config)
        packer = _packer(config, fingerprint, pool)
        model = load_model(checkpoint, packer, config.weight_format, packed)
    finally:
        files.read_ahead.close()
    return PackedModel(checkpoint, fingerprint, model, pool)


def start_packing(
    files: ModelFiles, config: EngineConfig, progress: Progress | None = None
) -> Future[PackedModel]:
    """`pack_model` in a thread of its own. A program that ends does not wait for it."""
    packed: Future[PackedModel] = Future()

    def run() -> None:
        try:
            packed.set_result(pack_model(files, config, progress))
        except BaseException as error:  # whoever waits for the result raises it
            packed.set_exception(error)

    threading.Thread(target=run, name="kt-packing", daemon=True).start()
    return packed


def _pool(config: EngineConfig) -> ThreadPool | None:
    if config.backend == "torch":
        return None
    from kt_kernel import ThreadPool

    return ThreadPool(config.num_threads)


def _packer(config: EngineConfig, model: Fingerprint, pool: ThreadPool | None) -> Packer:
    """Imports only the backend that the config names."""
    if pool is None:
        from kt_runtime.ops.torch_ops import TorchOps

        return TorchOps(group_size=config.group_size)

    from kt_runtime.ops.pack_cache import PackCache
    from kt_runtime.ops.packing import KtPacker

    cache = None
    if config.pack_cache is not None:
        cache = PackCache(Path(config.pack_cache).expanduser(), model)
        if cache.is_empty:  # else little of the files will be needed
            model.files.read_ahead.start()
    return KtPacker(pool, config.max_batch_tokens, config.group_size, cache)
