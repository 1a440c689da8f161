# SPDX-License-Identifier: Apache-2.0
"""A checkpoint by its path: a Hugging Face directory or a GGUF file. Reads nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kt_runtime.checkpoint.gguf_model import GgufModel
from kt_runtime.checkpoint.model_dir import ModelConfig, ModelDir
from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.protocols import TensorSource


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a model is built from, wherever it comes from.

    Attributes:
        path: the directory or file.
        config: its settings under config.json's keys.
        model_type: its architecture, e.g. "mixtral".
        eos_token_ids: ids that end a sequence.
        open_tensors: opens the weights; raises ValueError `[checkpoint] …` where they are not
            complete.
    """

    path: Path
    config: ModelConfig
    model_type: str
    eos_token_ids: tuple[int, ...]
    open_tensors: Callable[[], TensorSource]


def open_checkpoint(path: str | Path | ModelFiles) -> Checkpoint:
    """Reads and checks all that is no weight.

    Raises:
        ValueError: `[checkpoint] …` or `[gguf] …`, naming file and key.
    """
    opened = ModelFiles.open(path)
    path = opened.path
    if opened.gguf is not None:
        gguf = GgufModel.open(opened.gguf)
        return Checkpoint(
            path, gguf.config, gguf.model_type, gguf.eos_token_ids, lambda: gguf.source
        )
    files = ModelDir.open(path)

    def open_tensors() -> TensorSource:
        from kt_runtime.checkpoint.safetensors import SafetensorsSource  # imports torch

        return SafetensorsSource(path)

    return Checkpoint(path, files.config, files.model_type, files.eos_token_ids, open_tensors)
