# SPDX-License-Identifier: Apache-2.0
"""smolmoe-exact equals the dense model, as transformers computes both."""

import copy
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
    ids = torch.tensor([tokenizer.encode(heldout_text())[:128]])
    with torch.inference_mode():
        exact, dense = exact_model(ids).logits, dense_model(ids).logits
    assert torch.equal(exact.argmax(-1), dense.argmax(-1))
    assert (exact - dense).abs().max() <= 1e-4  # measured 6e-5 to 9e-5: float32 summation order


@pytest.mark.slow
def test_differs_from_the_dense_model_by_rounding_only(exact_model: Any, dense_model: Any) -> None:
    """One FFN in float64, where no rounding can hide a wrong weight."""
    x = torch.randn(16, 576, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for layer in (0, 29):
        exact = copy.deepcopy(exact_model.model.layers[layer].mlp).double()
        exact.experts.config._experts_implementation = "eager"  # the default has no float64
        dense = copy.deepcopy(dense_model.model.layers[layer].mlp).double()
        with torch.inference_mode():
            expected = dense(x)
            difference = exact(x[None])[0] - expected
        assert difference.abs().max() <= 1e-12 * expected.abs().max()


def test_is_sharded_with_a_complete_index(exact_directory: Path) -> None:
    index = json.loads((exact_directory / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) >= 2
    assert files == {file.name for file in exact_directory.glob("*.safetensors")}
    assert "lm_head.weight" not in index["weight_map"]  # tied to the embedding, as in the source
