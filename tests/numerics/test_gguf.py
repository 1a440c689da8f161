# SPDX-License-Identifier: Apache-2.0
"""A published GGUF file, SmolLM2-135M-Instruct in Q4_1, as it is: text, ids, logits and answers
against transformers and the library `gguf`, which read it with their own code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from kt_demo_model import calibration_text, heldout_text
from kt_demo_model.dense import read_dense
from kt_demo_model.progress import BuildProgress
from kt_demo_model.source import source_gguf
from kt_runtime import LLM, SamplingParams
from kt_runtime.text import ChatTemplate, Tokenizer

pytestmark = pytest.mark.slow

NUM_TOKENS = 320
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
# RMS error, relative to the result, of one product whose activations are rounded to int8 with a
# scale per 32: absmax of 32 normal numbers is 2.1 sigma on average, errors are uniform in a step.
ONE_PRODUCT = 2.1 / 127 / 12**0.5
TEXTS = [
    "Hello world! It's 2026, isn't   it?\n\n\tdef f(x): return x**2  # ünïcode",
    "中文 العربية 😀 e\u0301 \u200b ﬁ 한국어 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    # No digits but these: transformers' conversion of the file leaves " ⅷ" and " ٣" with their
    # space; llama.cpp's rule and the library's `Digits` cut every numeral, as ours does.
    "3.14159 10,000 v2.0.1 1e-5 0xFF",
    " leading and trailing \n \r\n\r\n   \t ",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><repo_name><|im_start",
    "for (int i = 0; i < n; ++i) { sum += a[i]; }  /* WE'LL'D */",
    "",
]


@pytest.fixture(scope="module")
def path() -> Path:
    return source_gguf(BuildProgress(False))


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def ids(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(heldout_text())[:NUM_TOKENS]


@pytest.fixture(scope="module")
def want(path: Path, ids: list[int]) -> np.ndarray:
    """transformers' logits of the weights as the library dequantises them."""
    dense = read_dense(path, lambda: None)
    model = LlamaForCausalLM(LlamaConfig(**dense.config)).eval()
    tensors = {name: torch.from_numpy(values) for name, values in dense.tensors.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return logits


@pytest.fixture(scope="module", params=["float32", "native"])
def llm(request: pytest.FixtureRequest, path: Path) -> Iterator[LLM]:
    with LLM(path, weight_format=request.param, kv_cpu_memory_gb=0.2) as loaded:
        yield loaded


def test_ids_and_template_are_those_of_transformers(path: Path, tokenizer: Tokenizer) -> None:
    judge = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in [*TEXTS, heldout_text(), calibration_text()]:
        assert tokenizer.encode(text) == judge.encode(text)
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text
    template = ChatTemplate.from_pretrained(path)
    assert template is not None
    assert template.render(QUESTION) == judge.apply_chat_template(
        QUESTION, tokenize=False, add_generation_prompt=True
    )


def test_logits_are_those_of_transformers(llm: LLM, ids: list[int], want: np.ndarray) -> None:
    got = llm.logits(ids)
    if llm.engine.config.weight_format == "float32":
        assert np.abs(got - want).max() < 1e-3
        return
    # Seven products in each of 30 layers and the head, whose errors add in squares.
    deviation = np.sqrt(np.square(got - want).mean(-1))
    spread = want.std(-1)
    assert np.median(deviation / spread) < 1.5 * (7 * 30 + 1) ** 0.5 * ONE_PRODUCT
    assert abs(log_perplexity(got, ids) - log_perplexity(want, ids)) < 0.02


def test_answers_make_sense(llm: LLM) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=8)
    if llm.engine.config.weight_format == "float32":
        (answer,) = llm.chat(QUESTION, sampling)
        assert (answer.text, answer.finish_reason) == ("The capital of France is Paris.", "stop")
    (continued,) = llm.generate("The capital of France is", sampling)
    assert continued.text.startswith(" Paris")


def test_native_runs_the_file_s_own_blocks(llm: LLM) -> None:
    packed: Any = llm.stats().weight_formats
    if llm.engine.config.weight_format == "native":
        assert packed == {"linear": "q4_1", "lm_head": "q8_0", "embedding": "q8_0"}


def log_perplexity(logits: np.ndarray, ids: list[int]) -> float:
    """Mean negative log-likelihood of each token given those before it."""
    rows = torch.from_numpy(logits[:-1]).double().log_softmax(-1)
    return float(-rows[range(len(ids) - 1), ids[1:]].mean())
