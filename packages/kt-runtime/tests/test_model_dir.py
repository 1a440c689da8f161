# SPDX-License-Identifier: Apache-2.0
"""checkpoint.model_dir: JSON files are read once, checked, and refused with their name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kt_runtime.checkpoint.model_dir import ModelConfig, ModelDir

CONFIG = {"model_type": "mixtral", "eos_token_id": 2}


def write(directory: Path, config: Any = CONFIG, generation: Any = None) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def config(**values: Any) -> ModelConfig:
    return ModelConfig(values, Path("config.json"))


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [
        (2, None, (2,)),
        ([2, 3], None, (2, 3)),
        (2, {"eos_token_id": [5, 7]}, (5, 7)),  # what generation says counts
        (2, {"eos_token_id": None}, (2,)),
        (None, {}, ()),
    ],
)
def test_eos_ids_come_from_generation_config_first(
    tmp_path: Path, in_config: Any, in_generation: Any, expected: tuple[int, ...]
) -> None:
    write(tmp_path, CONFIG | {"eos_token_id": in_config}, in_generation)
    model_dir = ModelDir.open(tmp_path)
    assert model_dir.eos_token_ids == expected
    assert model_dir.model_type == "mixtral"


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[checkpoint\] the model must be a directory; got .*no"):
        ModelDir.open(tmp_path / "no")


def test_missing_config_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[checkpoint\] config.json must exist"):
        ModelDir.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff\xfe"])
def test_bad_json_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"\[checkpoint\] .*config.json must"):
        ModelDir.open(tmp_path)


def test_bad_generation_config_is_refused_too(tmp_path: Path) -> None:
    write(tmp_path, generation={"eos_token_id": "</s>"})
    with pytest.raises(ValueError, match=r"eos_token_id in .*generation_config.json .*'</s>'"):
        ModelDir.open(tmp_path)


def test_missing_model_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model_type in .*config.json must be given"):
        ModelDir.open(write(tmp_path, {}))


@pytest.mark.parametrize("value", [0, -1, 2.0, "4", True, [4]])
def test_a_size_must_be_a_positive_whole_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"n in config.json must be a whole number of at least 1"):
        config(n=value).size("n")


@pytest.mark.parametrize("value", [1, "true"])
def test_a_flag_must_be_a_bool(value: Any) -> None:
    with pytest.raises(ValueError, match="true or false"):
        config(f=value).flag("f", default=False)


def test_the_first_spelling_that_is_given_counts() -> None:
    assert config(a=None, b=3, c=4).size("a", "b", "c") == 3
    assert config().size("a", "b", default=7) == 7
    with pytest.raises(ValueError, match=r"a or b in config.json must be given; got None"):
        config().size("a", "b")


def test_only_accepts_the_one_value_or_absence() -> None:
    config().only("hidden_act", "silu")
    config(hidden_act="silu").only("hidden_act", "silu")
    with pytest.raises(ValueError, match=r"hidden_act .* must be .silu. .*got 'gelu'"):
        config(hidden_act="gelu").only("hidden_act", "silu")
