# SPDX-License-Identifier: Apache-2.0
"""loading: packing begins before torch is there, and its errors reach whoever waits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.config import EngineConfig
from kt_runtime.core import Request, SamplingParams
from kt_runtime.engine import Engine
from kt_runtime.loading import start_packing

from .tiny_gguf import write_tiny

CONFIG = EngineConfig(num_pages=16, num_threads=1)

PACK = """
import sys
from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.config import EngineConfig
from kt_runtime.loading import start_packing
packed = start_packing(ModelFiles.open(sys.argv[1]), EngineConfig(num_threads=1)).result()
print(packed.model.weight_formats["experts"], "torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("qwen3_moe", tmp_path_factory.mktemp("gguf"), lambda _: Type.Q8_0)[0]


def test_a_gguf_file_is_packed_without_torch(path: Path) -> None:
    command = [sys.executable, "-c", PACK, str(path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split() == ["q8_0", "False"]


def tokens(engine: Engine) -> list[int | None]:
    with engine:
        engine.add(Request("r", (1, 2, 3), SamplingParams(temperature=0.0, max_tokens=8)))
        events = []
        while engine.has_work:
            events += engine.step()
    return [event.token_id for event in events]


def test_what_another_thread_packed_is_the_model(path: Path) -> None:
    calls: list[tuple[int, int]] = []
    packed = start_packing(ModelFiles.open(path), CONFIG, lambda *call: calls.append(call))
    assert tokens(Engine.from_pretrained(packed, CONFIG)) == tokens(
        Engine.from_pretrained(path, CONFIG)
    )
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1] > 0


def test_an_error_is_raised_where_the_model_is_wanted(tmp_path: Path) -> None:
    packed = start_packing(ModelFiles.open(tmp_path), CONFIG)
    with pytest.raises(ValueError, match=r"^\[checkpoint\] config.json must exist"):
        Engine.from_pretrained(packed, CONFIG)
