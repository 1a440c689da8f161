# SPDX-License-Identifier: Apache-2.0
"""The built checkpoints and their judge (transformers), loaded once per session."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kt_demo_model import build_exact, build_sparse
from kt_demo_model.home import kt_home
from kt_demo_model.source import GGUF_NAME


@pytest.fixture(scope="session")
def exact_directory() -> Path:
    return build_exact(progress=False)


@pytest.fixture(scope="session")
def sparse_directory() -> Path:
    return build_sparse(progress=False)


@pytest.fixture(scope="session")
def tokenizer(exact_directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(exact_directory)


@pytest.fixture(scope="session")
def exact_model(exact_directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(exact_directory, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def sparse_model(sparse_directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(sparse_directory, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def dense_model(exact_directory: Path) -> Any:
    """The source as transformers itself reads it: independent of our GGUF reading."""
    model = AutoModelForCausalLM.from_pretrained(
        kt_home() / "sources", gguf_file=GGUF_NAME, dtype=torch.float32
    )
    return model.eval()


@pytest.fixture(scope="session")
def ask(tokenizer: Any) -> Callable[[Any, str], str]:
    """A function (model, question) -> the greedy answer through the chat template."""

    def answer(model: Any, question: str) -> str:
        messages = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        new_ids = output[0, inputs["input_ids"].shape[1] :]
        return tokenizer.decode(new_ids, skip_special_tokens=True)

    return answer
