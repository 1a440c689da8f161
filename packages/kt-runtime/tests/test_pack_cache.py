# SPDX-License-Identifier: Apache-2.0
"""Packed experts between starts: found again without their source, never taken for others, and no
load fails because of them."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kt_kernel import Experts
from kt_runtime.checkpoint.fingerprint import Fingerprint
from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.checkpoint.safetensors import SafetensorsSource
from kt_runtime.config import EngineConfig
from kt_runtime.core import Request, SamplingParams
from kt_runtime.engine import Engine
from kt_runtime.ops.pack_cache import PackCache

from .tiny_models import tiny_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model's directory to change."""
    return Path(shutil.copytree(tiny_checkpoint("qwen3_moe")[1], tmp_path / "model"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the experts' tensors that a source was asked for."""
    names: list[str] = []
    original = SafetensorsSource.get

    def get(self: SafetensorsSource, name: str):
        if ".experts." in name:
            names.append(name)
        return original(self, name)

    monkeypatch.setattr(SafetensorsSource, "get", get)
    return names


def tokens(model: Path, cache: Path | None, **settings) -> list[int]:
    """What the model says, loaded with a cache."""
    kept = None if cache is None else str(cache)
    calls: list[tuple[int, int]] = []
    config = EngineConfig(num_pages=16, num_threads=2, pack_cache=kept, **settings)
    with Engine.from_pretrained(model, config, lambda *call: calls.append(call)) as engine:
        assert calls[-1][0] == calls[-1][1]
        assert calls == sorted(calls)
        engine.add(Request("r", (1, 2, 3), SamplingParams(temperature=0.0, max_tokens=8)))
        events = []
        while engine.has_work:
            events += engine.step()
    return [event.token_id for event in events]


def files_of(cache: Path, suffix: str) -> list[Path]:
    return sorted(cache.glob(f"*/*{suffix}"))


def test_a_warm_start_reads_no_expert(model: Path, tmp_path: Path, read: list[str]) -> None:
    cache = tmp_path / "a" / "cache"
    want = tokens(model, None, weight_format="int4")
    read.clear()
    assert tokens(model, cache, weight_format="int4") == want
    assert read
    read.clear()
    assert tokens(model, cache, weight_format="int4") == want
    assert read == []
    tokens(model, cache, weight_format="int8")  # another setting
    assert read
    read.clear()
    tokens(model, cache, weight_format="int4", group_size=64)
    assert read


def test_what_is_kept_is_for_its_user_alone(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    tokens(model, cache)
    (directory,) = cache.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    kept = list(directory.iterdir())
    assert len(kept) == 2 * len(files_of(cache, ".json")) > 0
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}


def test_other_weights_find_nothing(model: Path, tmp_path: Path, read: list[str]) -> None:
    tokens(model, tmp_path / "cache", weight_format="int4")
    read.clear()
    os.utime(model / "model.safetensors", ns=(1, 1))
    tokens(model, tmp_path / "cache", weight_format="int4")
    assert read


def test_keys_differ_by_all_that_changes_the_bytes(model: Path, tmp_path: Path) -> None:
    cache = PackCache(tmp_path, Fingerprint(ModelFiles.open(model)))
    formats = {"gate": "int4", "up": "int4", "down": "int4"}
    keys = {
        cache.key("a", (8, 64, 32, 32), formats),
        cache.key("b", (8, 64, 32, 32), formats),
        cache.key("a", (8, 64, 32, 64), formats),
        cache.key("a", (8, 64, 32, 32), formats | {"down": "int8"}),
    }
    assert len(keys) == 4


def damage(kind: str, cache: Path) -> None:
    weights, notes = files_of(cache, ".safetensors"), files_of(cache, ".json")
    assert len(weights) == len(notes) >= 2
    if kind == "flipped":
        content = bytearray(weights[0].read_bytes())
        content[-5] ^= 1
        weights[0].write_bytes(content)
    elif kind == "cut off":
        weights[0].write_bytes(weights[0].read_bytes()[:-100])
    elif kind == "empty":
        weights[0].write_bytes(b"")
    elif kind == "another layer's":
        shutil.copy(weights[1], weights[0])
    elif kind == "another layer's, with its note":
        shutil.copy(weights[1], weights[0])
        shutil.copy(notes[1], notes[0])
    else:
        notes[0].write_text("[" * 100_000)


@pytest.mark.parametrize(
    "kind",
    [
        "flipped",
        "cut off",
        "empty",
        "another layer's",
        "another layer's, with its note",
        "note is no JSON",
    ],
)
def test_what_is_damaged_is_packed_again(
    model: Path, tmp_path: Path, read: list[str], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    cache = tmp_path / "cache"
    want = tokens(model, cache)
    num_layers, all_read = len(files_of(cache, ".json")), len(read)
    damage(kind, cache)
    read.clear()
    with caplog.at_level(logging.WARNING):
        assert tokens(model, cache) == want
    assert len(read) == all_read / num_layers  # one layer's
    assert "packing again" in caplog.text
    read.clear()
    assert tokens(model, cache) == want
    assert read == []


def test_a_full_disk_only_warns(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def save(self: Experts, path: Path, **_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Experts, "save", save)
    cache = tmp_path / "cache"
    with caplog.at_level(logging.WARNING):
        assert tokens(model, cache) == tokens(model, None)
    assert "No space left" in caplog.text
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_several_writers_leave_one_whole_file(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(3) as writers:
        said = list(writers.map(lambda _: tokens(model, cache), range(3)))
    assert said[0] == said[1] == said[2] == tokens(model, cache)
    (directory,) = cache.iterdir()
    assert {path.suffix for path in directory.iterdir()} == {".json", ".safetensors"}


def test_nobody_s_else_files_are_trusted(
    model: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    tokens(model, cache)
    read.clear()
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    tokens(model, cache)
    assert read
