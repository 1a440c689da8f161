# SPDX-License-Identifier: Apache-2.0
"""tools/measure_load.py: what it reads, evicts and prints."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from types import ModuleType

import pytest

from kt_runtime.checkpoint.model_files import ModelFiles

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    "--arch llama --type q4_0 --layers 2 --hidden 256 --heads 4 --kv-heads 2 --head-dim 64 "
    "--intermediate 512 --vocab 400 --moe-intermediate 256 --experts 0 --experts-used 0 "
    "--context 256 --vocabulary bytes --out"
)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("measure_load")


def test_three_rates_of_all_that_is_packed(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "model.gguf"
    assert importlib.import_module("synthetic_model").main([*TINY.split(), str(path)]) == 0
    stored = list(ModelFiles.open(path).read_ahead.tensors())
    packed = [tensor for tensor in stored if tensor.name != "token_embd.weight"]
    assert len(packed) == len(stored) - 1
    did: list[str | tuple[int, int]] = []
    pread = os.pread

    def counted(fd: int, size: int, begin: int) -> bytes:
        data = pread(fd, size, begin)
        did.append((begin, len(data)))
        return data

    def fadvise(fd: int, begin: int, size: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            did.append("evict")

    monkeypatch.setattr(os, "pread", counted)
    monkeypatch.setattr(os, "posix_fadvise", fadvise)
    monkeypatch.setattr(tool, "_REQUEST", 10_000)
    capsys.readouterr()
    assert tool.main([str(path), "--rounds", "2", "--threads", "1"]) == 0
    assert did[0] == "evict"
    assert did.count("evict") == 4
    ranges = sorted(done for done in did if isinstance(done, tuple))
    assert sum(size for _, size in ranges) == 2 * sum(tensor.nbytes for tensor in packed)
    for tensor in packed:
        begins = range(tensor.begin, tensor.begin + tensor.nbytes, 10_000)
        assert all(ranges.count((at, min(10_000, begins.stop - at))) == 2 for at in begins)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"0\.00\d GB of weights, medians of 2", lines[0])
    assert [line.split()[0] for line in lines[1:]] == ["read", "pack", "load"]


def test_the_part_is_of_the_slower_of_disk_and_packing(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    tool.report(6 * 10**9, {"read": [1.0, 9.0, 2.0], "pack": [3.0] * 3, "load": [4.0] * 3})
    read, pack, load = capsys.readouterr().out.splitlines()[1:]
    assert read.startswith("read   3.00 GB/s")
    assert pack.startswith("pack   2.00 GB/s")
    assert load == "load   1.50 GB/s: from the disk; 75% of the slower of the two"
