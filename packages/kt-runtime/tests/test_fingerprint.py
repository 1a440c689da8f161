# SPDX-License-Identifier: Apache-2.0
"""What makes two checkpoints different, and what does not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from kt_runtime.checkpoint import fingerprint
from kt_runtime.checkpoint.fingerprint import Fingerprint
from kt_runtime.checkpoint.model_files import ModelFiles

from .tiny_gguf import write_tiny
from .tiny_models import tiny_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model's directory to change."""
    return Path(shutil.copytree(tiny_checkpoint("qwen3_moe")[1], tmp_path / "model"))


def of(model: Path, identity="sampled") -> Fingerprint:
    return Fingerprint(ModelFiles.open(model), identity)


def change_file(file: Path, what: str) -> None:
    status, content = file.stat(), bytearray(file.read_bytes())
    if what == "header":  # tensors exchange their names
        content = content.replace(b"layers.0.", b"layers.X.").replace(b"layers.1.", b"layers.0.")
        content = content.replace(b"layers.X.", b"layers.1.")
    elif what == "sample":
        content[-1] ^= 1
    elif what == "size":
        content.append(0)
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + (what == "time")))
    if what == "name":
        file.rename(file.with_name("model-2.safetensors"))


@pytest.mark.parametrize("what", ["header", "sample", "size", "time", "name"])
def test_changed_weights_are_other_weights(model: Path, what: str) -> None:
    before = of(model).weights
    assert of(model).weights == before
    change_file(model / "model.safetensors", what)
    assert of(model).weights != before


def test_samples_lie_all_over_a_large_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_SAMPLE", 256)
    file = model / "model.safetensors"
    status, content = file.stat(), file.read_bytes()
    before = of(model).weights
    for i in range(1, 16):  # the first sample lies in the header
        at = (len(content) - 256) * i // 15
        changed = bytearray(content)
        changed[max(at, len(content) // 20) + 9] ^= 1
        file.write_bytes(changed)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert of(model).weights != before


def test_the_full_digest_sees_every_byte_and_no_times(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_SAMPLE", 16)
    file = model / "model.safetensors"
    content = bytearray(file.read_bytes())
    sampled, full = of(model).weights, of(model, "full").weights
    assert sampled != full
    at = len(content) * 3 // 4
    status = file.stat()
    content[at] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert of(model).weights == sampled  # between two samples
    assert of(model, "full").weights != full
    content[at] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert of(model).weights != sampled
    assert of(model, "full").weights == full
    shutil.move(model, tmp_path / "elsewhere")
    assert of(tmp_path / "elsewhere", "full").weights == full


def test_configuration_and_tokenizer_have_their_own_digests(model: Path) -> None:
    first = of(model)
    assert first.tokenizer is None
    (model / "tokenizer.json").write_text("{}")
    second = of(model)
    assert (second.weights, second.config) == (first.weights, first.config)
    assert second.tokenizer is not None
    with (model / "config.json").open("a") as opened:
        opened.write("\n")
    third = of(model)
    assert (third.weights, third.tokenizer) == (second.weights, second.tokenizer)
    assert third.config != second.config


def test_a_digest_is_taken_once(model: Path) -> None:
    kept = of(model)
    before = kept.weights
    change_file(model / "model.safetensors", "sample")
    assert kept.weights == before


def test_a_split_gguf_file_is_all_its_shards(tmp_path: Path) -> None:
    first, _ = write_tiny("mixtral", tmp_path, lambda _: Type.Q8_0, split=7)
    before = of(first)
    weights = before.weights
    assert (before.config, before.tokenizer) == (None, None)  # the header has them
    change_file(first.with_name(first.name.replace("-00001-", "-00002-")), "sample")
    assert of(first).weights != weights
