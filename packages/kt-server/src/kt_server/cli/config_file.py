# SPDX-License-Identifier: Apache-2.0
"""`--config FILE`: a command's options from a YAML, JSON or TOML file. What the command line says
wins; what values may be is checked by the command itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

# Names of the reference system's config.yaml, and ours for the same thing.
REFERENCE_NAMES = {
    "attn.page_size": "kv_page_size",
    "kvc2.cpu_memory_size_GB": "kv_cpu_memory_gb",
    "kvc2.disk_path": "kv_disk_path",
}
# Names of its file that mean nothing here, with what to say instead.
_WITHOUT_MEANING = {
    "attn.chunk_size": "prompts are computed in chunks that --max-batch-tokens and --max-itl-ms "
    "bound",
    "kvc2.utilization_percentage": "--kv-cpu-memory-gb says how much memory KV pages take",
}
_GPU_ONLY = "kvc2.gpu_only"


def read(path: Path) -> dict[str, str]:
    """The options that a file sets, by name (kv_page_size), as text that the command line would
    have.

    What the reference system's names set has ours, with a warning on stderr where one means
    nothing here. `kvc2.gpu_only: true` sets no kv_disk_path.

    Raises:
        ValueError: `[config] …`, naming the file or the key: no such syntax, not a mapping, a value
            that is no text, number or boolean, or a name given twice.
        OSError: the file cannot be read.
    """
    options: dict[str, str] = {}
    gpu_only = False
    for key, value in _flat(path, _parse(path), "").items():
        if key == _GPU_ONLY:
            gpu_only = value is True
        elif key in _WITHOUT_MEANING:
            _warn(f"{key} in {path} is ignored: {_WITHOUT_MEANING[key]}")
        elif value is not None:
            name = REFERENCE_NAMES.get(key, key.replace("-", "_"))
            if name in options:
                raise ValueError(f"[config] {name} must be set once; got it twice in {path}")
            options[name] = _text(path, key, value)
    if gpu_only and options.pop("kv_disk_path", None) is not None:
        _warn(f"kvc2.disk_path in {path} is ignored: {_GPU_ONLY} is true")
    return options


def _use(context: typer.Context, path: Path | None) -> Path | None:
    """Have the file's options as the command's defaults."""
    if path is not None:
        options = read(path)
        known = {parameter.name for parameter in context.command.params} - {"config"}
        if unknown := sorted(options.keys() - known):
            raise ValueError(
                f"[config] keys must be options of kt {context.info_name}; "
                f"got {', '.join(unknown)} in {path}"
            )
        context.default_map = options
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        callback=_use,
        is_eager=True,  # before the options whose defaults it sets
        help="YAML, JSON or TOML file with these options (kv_page_size: 16).",
    ),
]


def _parse(path: Path) -> dict[Any, Any]:
    import tomllib

    import yaml

    try:
        if path.suffix == ".toml":
            return tomllib.loads(path.read_text())
        parsed = yaml.safe_load(path.read_text())  # JSON is YAML, too
    except (yaml.YAMLError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"[config] {path} must be YAML, JSON or TOML; got {error}") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"[config] {path} must hold keys and values; got {parsed!r:.100}")
    return parsed


def _flat(path: Path, mapping: dict[Any, Any], prefix: str) -> dict[str, Any]:
    """{"kvc2": {"disk_path": …}} as {"kvc2.disk_path": …}, which may be written itself, too."""
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        parts = _flat(path, value, f"{key}.") if isinstance(value, dict) else {key: value}
        if twice := flat.keys() & parts.keys():
            raise ValueError(f"[config] {min(twice)} must be set once; got it twice in {path}")
        flat |= parts
    return flat


def _text(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, (str, int, float)):
        raise ValueError(
            f"[config] {key} must be text, a number or a boolean; got {value!r:.100} in {path}"
        )
    return str(value)


def _warn(message: str) -> None:
    print(f"kt: [config] {message}", file=sys.stderr)
