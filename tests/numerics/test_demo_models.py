# SPDX-License-Identifier: Apache-2.0
"""LLM.logits on the two real demo models against transformers in float32, and what each weight
format costs.

The outside judge of the whole stack: transformers reads the same directories with its own code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from kt_demo_model import heldout_text
from kt_runtime import LLM
from kt_runtime.inspect import resolve_model
from kt_runtime.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

MODELS = ("smolmoe-exact", "smolmoe-sparse")
PROMPT = "The quick brown fox jumps over the lazy dog. 1, 2, 3 — naïve café, 日本."


@pytest.fixture(scope="module", params=MODELS)
def model_dir(request: pytest.FixtureRequest) -> Path:
    return resolve_model(request.param)


@pytest.fixture(scope="module")
def heldout_ids(model_dir: Path) -> list[int]:
    return Tokenizer.from_dir(model_dir).encode(heldout_text())


@pytest.fixture(scope="module")
def reference(model_dir: Path, heldout_ids: list[int]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        return np.asarray(model(torch.tensor([heldout_ids])).logits[0])


@pytest.fixture(scope="module")
def exact(model_dir: Path) -> Iterator[LLM]:
    with LLM(model_dir, weight_format="float32") as llm:
        yield llm


def perplexity(logits: np.ndarray, ids: list[int]) -> float:
    """exp of the mean negative log-likelihood of ids[1:], from logits (len(ids), vocab_size)."""
    rows = logits[:-1].astype(np.float64)
    top = rows.max(axis=1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(rows - top).sum(axis=1))
    return math.exp(float(np.mean(log_sum - rows[np.arange(len(ids) - 1), ids[1:]])))


def test_float32_logits_equal_transformers(
    exact: LLM, reference: np.ndarray, heldout_ids: list[int]
) -> None:
    logits = exact.logits(heldout_ids)
    assert logits.shape == reference.shape
    assert logits.dtype == np.float32
    assert np.abs(logits - reference).max() <= 1e-3
    assert (logits.argmax(axis=1) == reference.argmax(axis=1)).all()


def test_chunked_one_shot_and_token_by_token_are_bitwise_equal(
    exact: LLM, heldout_ids: list[int]
) -> None:
    ids = heldout_ids[:80]
    one_shot = exact.logits(ids)
    for chunk_size in (1, 7, 32):
        np.testing.assert_array_equal(exact.logits(ids, chunk_size=chunk_size), one_shot)


# Bounds on perplexity relative to float32: bf16 keeps 8 bits of mantissa, int8 has one scale per 32
# weights, int4 leaves 15
# levels per 32 weights, which costs a 135M-parameter model visibly. Measured figures:
# docs/benchmarks.md.
@pytest.mark.parametrize(
    ("weight_format", "bound"), [("bf16", 1.02), ("int8", 1.02), ("int4", 1.35)]
)
def test_perplexity_on_heldout_text_stays_within_the_format_s_bound(
    model_dir: Path,
    reference: np.ndarray,
    heldout_ids: list[int],
    weight_format: str,
    bound: float,
) -> None:
    with LLM(model_dir, weight_format=weight_format) as llm:
        logits = llm.logits(heldout_ids)
    ratio = perplexity(logits, heldout_ids) / perplexity(reference, heldout_ids)
    assert 1 / bound <= ratio <= bound, f"perplexity ratio {ratio:.4f}"
    # The format really was used: an exact result would mean that nothing was quantised.
    assert np.abs(logits - reference).max() > 1e-3
