# SPDX-License-Identifier: Apache-2.0
"""smolmoe-sparse still talks, and its routing follows the text, as transformers computes it."""

import math
from typing import Any

import pytest
import torch

from kt_demo_model import calibration_text, heldout_text
from kt_demo_model.sparse import DOCUMENT_SEPARATOR, NUM_EXPERTS, TOP_K

# The whole text in one context, dense 20.13: 28.84 (1.43) if built on a Zen 4. Which neurons share
# an expert follows from the last bits of a machine's matrix products: others differ by some 0.05.
MAX_PERPLEXITY_RATIO = 1.5
PROSE, CODE = "The old house by the sea was quiet.", "for (int i = 0; i < n; i++) { a[i] = 0; }"


def expert_shares(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    """(num_moe_layers, num_experts): the share of tokens of `text` that chose each expert."""
    chosen = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda *hook: chosen.append(hook[-1][2]))
        for layer in model.model.layers
        if hasattr(layer.mlp, "gate")
    ]
    with torch.inference_mode():
        model(torch.tensor([tokenizer.encode(text)]))
    for hook in hooks:
        hook.remove()
    one_hot = torch.nn.functional.one_hot(torch.stack(chosen), NUM_EXPERTS)
    return one_hot.sum(2).float().mean(1)


def perplexity(model: Any, tokenizer: Any, text: str) -> float:
    ids = torch.tensor([tokenizer.encode(text)])
    with torch.inference_mode():
        return math.exp(model(ids, labels=ids).loss)


def test_still_knows_the_capital_of_france(sparse_model: Any, ask: Any) -> None:
    assert "Paris" in ask(sparse_model, "What is the capital of France?")


def test_every_token_uses_top_k_experts_and_every_expert_is_used(
    sparse_model: Any, tokenizer: Any
) -> None:
    shares = expert_shares(sparse_model, tokenizer, heldout_text())
    torch.testing.assert_close(shares.sum(1), torch.full((len(shares),), float(TOP_K)))
    assert shares.min() > 0
    assert shares.max(1).values.mean() > 1.1 * TOP_K / NUM_EXPERTS  # and not all of them equally


def test_routing_depends_on_the_text(sparse_model: Any, tokenizer: Any) -> None:
    prose = expert_shares(sparse_model, tokenizer, PROSE)
    code = expert_shares(sparse_model, tokenizer, CODE)
    assert (prose - code).abs().mean() > 0.05


@pytest.mark.slow
def test_heldout_perplexity_stays_near_the_dense_model(
    sparse_model: Any, exact_model: Any, tokenizer: Any
) -> None:
    dense = perplexity(exact_model, tokenizer, heldout_text())
    sparse = perplexity(sparse_model, tokenizer, heldout_text())
    assert dense < 22
    assert sparse < MAX_PERPLEXITY_RATIO * dense


def test_heldout_text_shares_no_sentence_with_the_calibration_text() -> None:
    calibration = calibration_text().replace(DOCUMENT_SEPARATOR, "\n")
    sentences = [part.strip() for part in heldout_text().replace("\n", ". ").split(". ")]
    assert not [text for text in sentences if len(text) > 20 and text in calibration]
