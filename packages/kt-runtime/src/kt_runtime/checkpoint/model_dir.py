# SPDX-License-Identifier: Apache-2.0
"""A checkpoint directory's JSON files: config.json and generation_config.json. Not tensors, not the
tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; ValueError `[checkpoint] …` if it is missing or not a JSON
    object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"[checkpoint] {path.name} must exist in the model directory; got {path.parent}"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"[checkpoint] {path} must be readable JSON; got {error}") from None
    if not isinstance(values, dict):
        raise ValueError(
            f"[checkpoint] {path} must hold a JSON object; got {type(values).__name__}"
        )
    return values


class ModelConfig:
    """config.json with its values checked where they are read.

    Every reader takes the spellings of one setting, oldest habit last; the first that is present
    and not null counts. A setting without a default must be there. Errors: ValueError `[checkpoint]
    …` naming file and key.
    """

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self._values = values
        self._path = path

    def get(self, *keys: str) -> Any:
        """The raw value, or None."""
        return next((self._values[k] for k in keys if self._values.get(k) is not None), None)

    def section(self, *keys: str) -> ModelConfig:
        """A nested object; empty if absent."""
        value = self.get(*keys)
        self._check(value is None or isinstance(value, dict), keys, "an object", value)
        return ModelConfig(value or {}, self._path)

    def text(self, *keys: str, default: str | None = None) -> str:
        """A string."""
        value = self._present(keys, default)
        self._check(isinstance(value, str), keys, "a string", value)
        return str(value)

    def size(self, *keys: str, default: int | None = None, at_least: int = 1) -> int:
        """A whole number that counts something."""
        value = self._present(keys, default)
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= at_least
        self._check(ok, keys, f"a whole number of at least {at_least}", value)
        return int(value)

    def number(self, *keys: str, default: float | None = None) -> float:
        """A number, as float."""
        value = self._present(keys, default)
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        self._check(ok, keys, "a number", value)
        return float(value)

    def flag(self, *keys: str, default: bool) -> bool:
        """true or false."""
        value = self._present(keys, default)
        self._check(isinstance(value, bool), keys, "true or false", value)
        return bool(value)

    def sizes(self, *keys: str) -> tuple[int, ...]:
        """A list of whole numbers, one whole number, or nothing."""
        value = self.get(*keys)
        values = [] if value is None else value if isinstance(value, list) else [value]
        ok = all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)
        self._check(ok, keys, "whole numbers", value)
        return tuple(values)

    def only(self, key: str, allowed: Any) -> None:
        """Refuses a setting that changes the mathematics in a way this model file does not have."""
        value = self._values.get(key, allowed)
        self._check(value == allowed, (key,), f"{json.dumps(allowed)} for this model", value)

    def _present(self, keys: tuple[str, ...], default: Any) -> Any:
        value = self.get(*keys)
        if value is None:
            value = default
        self._check(value is not None, keys, "given", value)
        return value

    def _check(self, ok: bool, keys: tuple[str, ...], rule: str, got: Any) -> None:
        if not ok:
            names = " or ".join(keys)
            raise ValueError(f"[checkpoint] {names} in {self._path} must be {rule}; got {got!r}")


@dataclass(frozen=True, slots=True)
class ModelDir:
    """An opened checkpoint directory.

    Attributes:
        path: the directory.
        config: config.json.
        model_type: its architecture, e.g. "mixtral".
        eos_token_ids: ids that end a sequence, from generation_config.json if it names any, else
            config.json.
    """

    path: Path
    config: ModelConfig
    model_type: str
    eos_token_ids: tuple[int, ...]

    @classmethod
    def open(cls, path: str | Path) -> ModelDir:
        """Reads and checks the JSON files. Raises ValueError `[checkpoint] …`; reads no tensors."""
        path = Path(path)
        if not path.is_dir():
            raise ValueError(f"[checkpoint] the model must be a directory; got {path}")
        config = ModelConfig(read_json(path / "config.json"), path / "config.json")
        generation_path = path / "generation_config.json"
        generation = ModelConfig(
            read_json(generation_path) if generation_path.exists() else {}, generation_path
        )
        eos = generation.sizes("eos_token_id") or config.sizes("eos_token_id")
        return cls(path, config, config.text("model_type"), eos)
