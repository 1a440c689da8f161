# SPDX-License-Identifier: Apache-2.0
"""tools/synthetic_model.py: what it writes loads, in both layouts, and computes sane numbers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pytest

from kt_runtime import LLM, SamplingParams

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    "--layers 3 --hidden 256 --heads 4 --kv-heads 2 --head-dim 64 --intermediate 512 --vocab 400 "
    "--moe-intermediate 256 --experts {experts} --experts-used {used} --context 256 "
    "--vocabulary bytes"
)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("synthetic_model")


def write(tool: ModuleType, out: Path, arch: str, kind: str, more: str = "") -> Path:
    experts = 0 if arch == "llama" else 8
    settings = TINY.format(experts=experts, used=min(experts, 2))
    arguments = f"--arch {arch} --type {kind} {settings} {more} --out {out}"
    assert tool.main(arguments.split()) == 0
    return out


@pytest.mark.parametrize(
    ("arch", "kind", "formats"),
    [
        ("llama", "q4_1", {"linear": "q4_1", "lm_head": "q6_k"}),
        ("llama", "f16", {"linear": "f16", "lm_head": "f16"}),
        ("mixtral", "q4_0", {"linear": "q4_0", "lm_head": "q6_k", "experts": "q4_0"}),
        ("qwen3_moe", "q4_k_m", {"linear": "q4_k+q6_k", "experts": "q4_k+q6_k"}),
        ("qwen3_moe", "q5_k", {"linear": "q5_k", "experts": "q5_k"}),
        ("qwen3_moe", "q8_0", {"linear": "q8_0", "lm_head": "q6_k", "experts": "q8_0"}),
    ],
)
def test_gguf_files_run_as_they_are(
    tool: ModuleType, tmp_path: Path, arch: str, kind: str, formats: dict[str, str]
) -> None:
    path = write(tool, tmp_path / "model.gguf", arch, kind)
    packed = runs_sanely(path)
    assert packed.items() >= formats.items()
    reader = gguf.GGUFReader(path)  # the library finds what it wrote where it says
    assert {t.name for t in reader.tensors} >= {"token_embd.weight", "blk.2.attn_q.weight"}
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("arch", ["llama", "mixtral", "qwen3_moe", "glm4_moe"])
def test_safetensors_run_in_every_model_type(tool: ModuleType, tmp_path: Path, arch: str) -> None:
    path = write(tool, tmp_path / "model", arch, "bf16")
    assert json.loads((path / "config.json").read_text())["model_type"] == arch
    assert runs_sanely(path)["linear"] == "bf16"


def runs_sanely(path: Path) -> dict[str, str]:
    """→ what it was packed to. Logits of random weights are about normal, and differ by token."""
    with LLM(path, num_pages=16) as llm:
        assert llm.tokenizer is not None
        ids = llm.tokenizer.encode("The capital of France")
        assert llm.tokenizer.decode(ids) == "The capital of France"
        logits = llm.logits(ids)
        assert np.isfinite(logits).all()
        assert 0.3 < logits.std(-1).min() < logits.std(-1).max() < 3
        assert len({tuple(row) for row in logits.round(3)}) == len(ids)
        (answer,) = llm.chat(
            [{"role": "user", "content": "hi"}], SamplingParams(temperature=0.0, max_tokens=4)
        )
        assert answer.finish_reason in ("length", "stop")
        return dict(llm.stats().weight_formats)


def test_equal_seeds_write_equal_files(tool: ModuleType, tmp_path: Path) -> None:
    one, again, other = (
        write(tool, tmp_path / f"{i}.gguf", "llama", "q4_0", f"--seed {seed}").read_bytes()
        for i, seed in enumerate((1, 1, 2))
    )
    assert one == again != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--type q4_0 --out directory", "must be one of f32, f16, bf16; got q4_0"),
        ("--preset glm-4.5-air --out m.gguf", "glm4_moe has no GGUF architecture"),
        ("--vocab 100 --out m.gguf", "--vocab must be at least 260 for bytes; got 100"),
        ("--layers 2 --hidden 8388608 --out m.gguf", "GB and 1 GB to spare; got"),
        ("--out .", "exists"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        tool.main(["--vocabulary", "bytes", "--experts", "1", *arguments.split()])
    assert message in f"{error.value}{capsys.readouterr().err}"
    assert list(tmp_path.iterdir()) == []
