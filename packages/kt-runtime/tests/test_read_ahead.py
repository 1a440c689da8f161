# SPDX-License-Identifier: Apache-2.0
"""What is read ahead: in the order of packing, never beyond the window, whatever the files are."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.checkpoint.read_ahead import ReadAhead, Stored
from kt_runtime.config import EngineConfig
from kt_runtime.engine import Engine

from .tiny_gguf import write_tiny
from .tiny_models import tiny_checkpoint

MIB = 1 << 20


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(file name, begin, nbytes) of every request, instead of the request."""
    requests: list[tuple[str, int, int]] = []

    def fadvise(fd: int, begin: int, nbytes: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        requests.append((Path(f"/proc/self/fd/{fd}").readlink().name, begin, nbytes))

    monkeypatch.setattr(os, "posix_fadvise", fadvise)
    return requests


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def finished(reader: ReadAhead) -> None:
    assert reader._thread is not None
    reader._thread.join(60)
    assert not reader._thread.is_alive()


def test_layers_come_first_then_what_is_around_them(tmp_path: Path, asked: list) -> None:
    file = tmp_path / "f"
    file.touch()
    names = ["output_norm.weight", "blk.10.a", "blk.2.a", "blk.2.b", "output.weight"]
    tensors = [Stored(name, file, 20 * MIB * i, 9 * MIB) for i, name in enumerate(names)]
    reader = ReadAhead(lambda: tensors)
    reader.start()
    reader.start()
    finished(reader)
    starts = [begin for _, begin, _ in asked if begin % (20 * MIB) == 0]
    assert starts == [20 * MIB * i for i in (2, 3, 1, 0, 4)]
    assert sum(nbytes for *_, nbytes in asked) == 5 * 9 * MIB


@pytest.mark.parametrize(
    ("table", "matrix"),
    [("token_embd.weight", "output.weight"), ("model.embed_tokens.weight", "lm_head.weight")],
)
def test_a_table_that_is_only_looked_up_is_not_read(
    tmp_path: Path, asked: list, table: str, matrix: str
) -> None:
    file = tmp_path / "f"
    file.touch()
    for tied in (False, True):
        names = [table, "a"] if tied else [table, "a", matrix]
        tensors = [Stored(name, file, 20 * MIB * i, MIB) for i, name in enumerate(names)]
        reader = ReadAhead(lambda tensors=tensors: tensors)
        reader.start()
        finished(reader)
        assert sorted(begin // (20 * MIB) for _, begin, _ in asked) == ([0, 1] if tied else [1, 2])
        asked.clear()


def test_no_more_is_read_than_the_window_holds(tmp_path: Path, asked: list) -> None:
    file = tmp_path / "f"
    file.touch()
    reader = ReadAhead(lambda: [Stored("x", file, 0, 100 * MIB)], window=24 * MIB)

    def total() -> int:
        return sum(nbytes for *_, nbytes in asked)

    reader.start()
    wait_for(lambda: total() == 24 * MIB)
    reader.packed(7 * MIB)  # not a step yet
    time.sleep(0.02)
    assert total() == 24 * MIB
    reader.packed(8 * MIB)
    wait_for(lambda: total() == 32 * MIB)
    reader.close()
    reader.close()
    assert total() == 32 * MIB


def test_a_file_that_is_gone_stops_nothing(tmp_path: Path, asked: list) -> None:
    reader = ReadAhead(lambda: [Stored("x", tmp_path / "no", 0, 1)])
    reader.start()
    finished(reader)
    assert asked == []


def test_directories_are_read_by_their_headers(tmp_path: Path, asked: list) -> None:
    weights = {"model.layers.0.w": np.zeros(1000, np.uint8), "lm_head": np.zeros(500, np.uint8)}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    reader = ModelFiles.open(tmp_path).read_ahead
    reader.start()
    finished(reader)
    assert sum(nbytes for *_, nbytes in asked) == 1500
    ends = [begin + nbytes for _, begin, nbytes in asked]
    assert max(ends) == (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize("kind", ["gguf", "directory"])
def test_loading_starts_and_ends_it(tmp_path: Path, asked: list, kind: str) -> None:
    path = tiny_checkpoint("qwen3_moe")[1]
    files = {"model.safetensors"}
    if kind == "gguf":
        path, _ = write_tiny("qwen3_moe", tmp_path, lambda _: Type.F16, split=7)
        files = {path.name for path in path.parent.glob("*.gguf")}
    opened = ModelFiles.open(path)
    with Engine.from_pretrained(opened, EngineConfig(num_pages=8, num_threads=1)):
        pass
    finished(opened.read_ahead)  # started, and ended with the load
    assert {name for name, *_ in asked} <= files
