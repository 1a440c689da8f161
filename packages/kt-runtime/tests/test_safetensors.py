# SPDX-License-Identifier: Apache-2.0
"""checkpoint.safetensors: tensors by name from one or many files; broken checkpoints are named when
opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kt_runtime.checkpoint.safetensors import FORMATS, INDEX, SINGLE, SafetensorsSource

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b.weight": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "c.bias": torch.arange(5, dtype=torch.float16),
}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / SINGLE)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    weight_map = {}
    for i, (name, tensor) in enumerate(TENSORS.items()):
        file = f"model-{i:05}.safetensors"
        save_file({name: tensor}, tmp_path / file)
        weight_map[name] = file
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_names_shapes_dtypes_and_values_are_those_written(
    layout: str, request: pytest.FixtureRequest
) -> None:
    source = SafetensorsSource(request.getfixturevalue(layout))
    assert sorted(source.names()) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert source.shape(name) == tuple(tensor.shape)
        assert source.format(name) == FORMATS[tensor.dtype]
        assert source.nbytes(name) == tensor.nbytes
        torch.testing.assert_close(source.get(name), tensor, rtol=0, atol=0)


def test_missing_tensor_is_named(single: Path) -> None:
    source = SafetensorsSource(single)
    for read in (source.get, source.shape, source.format):
        with pytest.raises(ValueError, match=r"\[checkpoint\] tensor d.weight must be in"):
            read("d.weight")


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_truncated_file_is_refused_when_opened(single: Path, keep: int) -> None:
    file = single / SINGLE
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"\[checkpoint\] {SINGLE} must be a complete"):
        SafetensorsSource(single)


def test_truncated_shard_is_named_when_opened(sharded: Path) -> None:
    file = sharded / "model-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model-00001.safetensors must be a complete"):
        SafetensorsSource(sharded)


def test_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002.safetensors must be a file in"):
        SafetensorsSource(sharded)


def test_tensor_that_the_index_promises_is_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["d.weight"] = "model-00000.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model-00000.safetensors must hold d.weight"):
        SafetensorsSource(sharded)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": 3}'])
def test_bad_index_is_refused(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    with pytest.raises(ValueError, match=rf"\[checkpoint\] .*{INDEX}"):
        SafetensorsSource(sharded)


def test_index_cannot_reach_outside_the_directory(sharded: Path) -> None:
    outside = sharded / "inner"
    outside.mkdir()
    (outside / INDEX).write_text(
        json.dumps({"weight_map": {"a.weight": "../model-00000.safetensors"}})
    )
    with pytest.raises(ValueError, match="must be a file in the model directory"):
        SafetensorsSource(outside)


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{SINGLE} must be a file in the model directory"):
        SafetensorsSource(tmp_path)
