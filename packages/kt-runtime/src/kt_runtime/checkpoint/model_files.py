# SPDX-License-Identifier: Apache-2.0
"""A model's files, opened once for all who read them: tokenizer, chat template, checkpoint. Imports
no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kt_runtime.checkpoint.gguf import Gguf


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What `from_pretrained` takes instead of a path, so that a header is parsed once per load.

    Attributes:
        path: a Hugging Face directory or a GGUF file.
        gguf: the opened file; None for a directory, whose files are small.
    """

    path: Path
    gguf: Gguf | None

    @classmethod
    def open(cls, path: str | Path | ModelFiles) -> ModelFiles:
        """Opens a GGUF file; a directory is looked at by those who read it. What is open stays.

        Raises:
            ValueError: `[gguf] …` naming file, key or tensor.
        """
        if isinstance(path, ModelFiles):
            return path
        path = Path(path)
        return cls(path, Gguf(path) if path.is_file() else None)
