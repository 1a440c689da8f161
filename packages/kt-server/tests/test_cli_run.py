# SPDX-License-Identifier: Apache-2.0
"""`kt run`: one prompt through the template, or continued as it is. The engine is a fake."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_runtime.config import EngineConfig
from kt_runtime.text import ChatTemplate
from kt_server.cli import run as run_module
from kt_server.cli.loading import LoadedModel
from kt_server.sampling import SamplingDefaults

from .fake_engine import TEMPLATE, TOKENIZER, FakeEngine


@pytest.mark.parametrize(
    ("template", "raw", "prompt"),
    [
        (TEMPLATE, False, "<|user|>Where?<|assistant|>"),
        (TEMPLATE, True, "Where?"),
        (None, False, "Where?"),
    ],
)
def test_the_answer_is_printed_once(
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    template: ChatTemplate | None,
    raw: bool,
    prompt: str,
) -> None:
    model = LoadedModel(Path("x"), engine, TOKENIZER, template, SamplingDefaults(temperature=0.5))
    configs: list[EngineConfig] = []

    def load_model(name: str, config: EngineConfig) -> LoadedModel:
        configs.append(config)
        return model

    monkeypatch.setattr(run_module, "load_model", load_model)
    run_module.run("x", "Where?", raw=raw, max_tokens=30, seed=1, pack_cache="kept")
    assert [config.pack_cache for config in configs] == ["kept"]
    assert capsys.readouterr().out == "Paris.\n"
    (request,) = engine.requests
    assert TOKENIZER.decode(request.prompt_token_ids, skip_special_tokens=False) == prompt
    sampling = request.sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.seed) == (0.5, 30, 1)
