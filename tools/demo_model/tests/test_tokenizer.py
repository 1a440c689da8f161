# SPDX-License-Identifier: Apache-2.0
"""The tokenizer built from GGUF metadata, against transformers' own conversion of the same file."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from kt_demo_model import calibration_text, heldout_text
from kt_demo_model.home import kt_home
from kt_demo_model.source import GGUF_NAME
from kt_demo_model.tokenizer import build_tokenizer

VARIED = [
    "Hello world! It's 2026, isn't   it?\n\n\tdef f(x): return x**2  # ünïcode",
    "中文 العربية 😀 e\u0301 \u200b ﬁ",
    "3.14159 10,000 v2.0.1 1e-5 0xFF",
    " leading and trailing \n ",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><repo_name>",
    "",
]


@pytest.mark.slow
def test_tokenises_like_the_conversion_of_transformers(tokenizer: Any) -> None:
    judge = AutoTokenizer.from_pretrained(kt_home() / "sources", gguf_file=GGUF_NAME)
    for text in [*VARIED, heldout_text(), calibration_text()]:
        assert tokenizer.encode(text) == judge.encode(text)
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    ) == judge.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("text", VARIED)
def test_decoding_gives_the_text_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_digit_is_a_token(tokenizer: Any) -> None:
    assert tokenizer.tokenize("20261122") == list("20261122")


def test_markers_are_single_special_tokens(tokenizer: Any) -> None:
    assert tokenizer.encode("<|im_start|><|im_end|>") == [1, 2]
    assert tokenizer.eos_token_id == 2
    assert tokenizer.decode([1, 2], skip_special_tokens=True) == ""


def test_template_opens_the_answer_of_the_assistant(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )


def test_other_kinds_of_tokenizer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[tokenizer\] .* got llama/default"):
        build_tokenizer({"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"})
