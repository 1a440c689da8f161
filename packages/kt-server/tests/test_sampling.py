# SPDX-License-Identifier: Apache-2.0
"""A request's sampling settings over the checkpoint's over the engine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_runtime.core import SamplingParams
from kt_server.sampling import SamplingDefaults


def test_generation_config_is_read(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(
        '{"eos_token_id": [1, 2], "do_sample": true, "temperature": 0.6, "top_k": 20,'
        ' "top_p": 0.95, "repetition_penalty": 1.05, "max_new_tokens": 9}'
    )
    defaults = SamplingDefaults.from_pretrained(tmp_path)
    params = defaults.params(seed=3)
    assert params == SamplingParams(
        max_tokens=9, temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.05, seed=3
    )
    assert defaults.params(repetition_penalty=1.0).repetition_penalty == 1


def test_without_a_file_the_engine_s_defaults_apply(tmp_path: Path) -> None:
    assert SamplingDefaults.from_pretrained(tmp_path).params() == SamplingParams()


def test_zero_is_a_value_not_an_absence() -> None:
    defaults = SamplingDefaults(temperature=0.6, top_k=20, min_p=0.1)
    params = defaults.params(temperature=0.0, top_k=0, min_p=0.0)
    assert (params.temperature, params.top_k, params.min_p) == (0.0, 0, 0.0)
    assert SamplingDefaults(temperature=0.0).params().temperature == 0.0


def test_minus_one_switches_top_k_off() -> None:
    assert SamplingDefaults(top_k=20).params(top_k=-1).top_k == 0


def test_seeds_are_64_bits() -> None:
    assert SamplingDefaults().params(seed=-1).seed == 2**64 - 1
    assert SamplingDefaults().params(seed=7).seed == 7


@pytest.mark.parametrize("content", ["{", "[]", '{"temperature": "hot"}'])
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"\[sampling\] .*generation_config.json"):
        SamplingDefaults.from_pretrained(tmp_path)
