# SPDX-License-Identifier: Apache-2.0
"""smolmoe-exact equals the dense model, as transformers computes both."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kt_demo_model import heldout_text


def test_says_what_the_capital_of_france_is(exact_model: Any, ask: Any) -> None:
    assert ask(exact_model, "What is the capital of France?") == "The capital of France is Paris."


@pytest.mark.slow
def test_equals_the_dense_model(exact_model: Any, dense_model: Any, tokenizer: Any) -> None:
    ids = torch.tensor([tokenizer.encode(heldout_text())[:256]])
    with torch.inference_mode():
        exact, dense = exact_model(ids).logits, dense_model(ids).logits
    assert torch.equal(exact.argmax(-1), dense.argmax(-1))
    assert (exact - dense).abs().max() <= 1e-4


def test_is_sharded_with_a_complete_index(exact_directory: Path) -> None:
    index = json.loads((exact_directory / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) >= 2
    assert files == {file.name for file in exact_directory.glob("*.safetensors")}
    assert "lm_head.weight" not in index["weight_map"]  # tied to the embedding, as in the source
