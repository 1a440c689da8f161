# SPDX-License-Identifier: Apache-2.0
"""text.gguf_vocabulary: a tokenizer written into a GGUF file comes out of it with the same ids."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend

from kt_runtime.checkpoint.model_dir import ModelConfig
from kt_runtime.text import ChatTemplate, Tokenizer
from kt_runtime.text.gguf_vocabulary import build_tokenizer, end_token_ids

from .tiny_gguf import add_value, add_vocabulary, finish
from .tiny_tokenizers import CORPUS, byte_level, sentencepiece

TEXTS = [
    *CORPUS,
    "",
    " leading,  two   and three spaces\n\n\tand\r\nlines \n ",
    "def f(x):\n    return x**2  # it's, WE'LL, 3.14159 1234567 0xFF",
    "<|user|>hi<|end|> <think>no</think> two words<|assistant|>",
    "e\u0301 \u200b ﬁ 中文 العربية 😀 \U0010ffff \x00",
]


def write(path: Path, vocabulary: Backend | None = None, pre: str = "gpt-2", **keys: Any) -> Path:
    writer = gguf.GGUFWriter(path / "model.gguf", "llama")
    if vocabulary is not None:
        add_vocabulary(writer, vocabulary, pre)
    for key, value in keys.items():
        add_value(writer, "tokenizer." + key.replace("__", "."), value)
    finish(writer)
    return path / "model.gguf"


def metadata(**keys: Any) -> ModelConfig:
    return ModelConfig(
        {f"tokenizer.{key.replace('__', '.')}": value for key, value in keys.items()},
        Path("m.gguf"),
    )


def test_byte_level_ids_are_those_of_the_tokenizer_written(tmp_path: Path) -> None:
    want = byte_level()
    got = Tokenizer.from_pretrained(write(tmp_path, want))
    for text in TEXTS:
        ids = got.encode(text)
        assert ids == want.encode(text).ids
        assert got.decode(ids, skip_special_tokens=False) == text
    assert got.special_ids == {
        want.token_to_id(t) for t in ("<|end|>", "<|user|>", "<|assistant|>")
    }


@pytest.mark.parametrize(
    ("pre", "regex"),
    [
        # As the tokenizer.json files of Llama 3 and Qwen 2 have them.
        (
            "llama-bpe",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
            r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        (
            "qwen2",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
            r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ],
)
def test_words_are_cut_as_the_models_were_trained(tmp_path: Path, pre: str, regex: str) -> None:
    want = byte_level()
    want.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    got = Tokenizer.from_pretrained(write(tmp_path, want, pre))
    for text in TEXTS[:-1]:
        assert got.encode(text) == want.encode(text).ids
    composed, decomposed = got.encode("é"), got.encode("e\u0301")
    assert (composed == decomposed) == (pre == "qwen2")


def test_smollm_cuts_every_digit() -> None:
    vocabulary = {
        "ggml__model": "gpt2",
        "ggml__tokens": ["1", "2", "12", "Ġ", "a", "Ġa"],
        "ggml__merges": ["1 2", "Ġ a"],
    }
    cut = build_tokenizer(metadata(**vocabulary, ggml__pre="smollm"))
    whole = build_tokenizer(metadata(**vocabulary, ggml__pre="gpt-2"))
    assert cut.encode("12 a").ids == [0, 1, 5]
    assert whole.encode("12 a").ids == [2, 5]


def test_sentencepiece_merges_the_best_score_first(tmp_path: Path) -> None:
    want = sentencepiece()
    state = json.loads(want.to_str())
    pieces = [want.id_to_token(i) for i in range(want.get_vocab_size())]
    ranks = {"".join(pair): -float(i) for i, pair in enumerate(state["model"]["merges"])}
    path = write(
        tmp_path,
        ggml__model="llama",
        ggml__tokens=pieces,
        ggml__scores=[ranks.get(piece, -1e4) for piece in pieces],
        ggml__token_type=[2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 259)],
        ggml__unknown_token_id=0,
        ggml__bos_token_id=1,
        ggml__eos_token_id=2,
    )
    got = Tokenizer.from_pretrained(path)
    for text in ["the thin hat", "Grüße, 東京", "two  spaces", "the</s>", "a<0x41>"]:
        ids = got.encode(text)
        assert ids == want.encode(text).ids
        assert got.decode(ids, skip_special_tokens=False) == text
    assert got.encode("the", add_special_tokens=True) == [1, *got.encode("the")]


@pytest.mark.parametrize(
    ("keys", "ends"),
    [
        ({}, (0, 0)),
        ({"ggml__add_bos_token": True}, (1, 0)),
        ({"ggml__add_bos_token": True, "ggml__add_eos_token": True}, (1, 1)),
        ({"ggml__add_eos_token": True}, (0, 1)),
        ({"ggml__add_bos_token": False}, (0, 0)),
    ],
)
def test_raw_prompts_get_the_ends_that_the_file_asks_for(
    tmp_path: Path, keys: dict[str, Any], ends: tuple[int, int]
) -> None:
    ids = {"ggml__bos_token_id": 1, "ggml__eos_token_id": 0}
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, byte_level(), **ids, **keys))
    plain = tokenizer.encode("Paris")
    assert tokenizer.encode("Paris", add_special_tokens=True) == (
        [1] * ends[0] + plain + [0] * ends[1]
    )


def test_template_sees_the_tokens_by_name(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        byte_level(),
        ggml__bos_token_id=1,
        chat_template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    )
    template = ChatTemplate.from_pretrained(path)
    assert template is not None
    assert template.render([{"role": "user", "content": "hi"}]) == "<|user|>hi"


def test_a_file_may_have_no_template_and_no_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path, ggml__model="no_vocab")
    assert ChatTemplate.from_pretrained(path) is None
    assert not Tokenizer.is_in(path)
    assert end_token_ids(metadata(ggml__model="no_vocab")) == ()


def test_answers_end_with_every_token_that_says_so() -> None:
    tokens = ["a", "<|eot_id|>", "<end>", "<|im_end|>", "</s>", "b"]
    keys = {
        "ggml__model": "gpt2",
        "ggml__tokens": tokens,
        "ggml__token_type": array("i", [1, 3, 3, 3, 1, 1]),
        "ggml__eos_token_id": 2,
        "ggml__eom_token_id": 5,
    }
    assert end_token_ids(metadata(**keys)) == (1, 2, 3, 5)  # "</s>" is ordinary text here


GOOD = {"ggml__model": "gpt2", "ggml__tokens": ["a", "b", "ab"], "ggml__merges": ["a b"]}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ggml__model": "bert"}, "tokenizer.ggml.model must be one of gpt2, llama; got 'bert'"),
        ({"ggml__pre": "tekken"}, "tokenizer.ggml.pre must be one of default, .*; got 'tekken'"),
        ({"ggml__tokens": None}, "tokenizer.ggml.tokens must be a list of strings; got NoneType"),
        ({"ggml__tokens": [1]}, "tokenizer.ggml.tokens must be a list of strings; got list"),
        ({"ggml__merges": ["ab"]}, "tokenizer.ggml.merges must be two tokens .*; got 'ab'"),
        ({"ggml__merges": ["a c"]}, "tokens and merges must make a tokenizer; got .*c"),
        ({"ggml__token_type": array("i", [1])}, "token_type must be one number per token, 3"),
        ({"ggml__add_bos_token": True, "ggml__bos_token_id": 3}, "bos_token_id must be below 3"),
        ({"ggml__model": "llama"}, "tokenizer.ggml.scores must be a list; got None"),
        ({"ggml__model": "llama", "ggml__scores": [0.0]}, "scores must be one per token, 3; got 1"),
        (
            {"ggml__model": "llama", "ggml__tokens": ["a" * 257], "ggml__scores": [0.0]},
            "must have at most 256 characters each; got 257 in token 0",
        ),
    ],
)
def test_lists_that_make_no_tokenizer_are_refused_by_key(
    keys: dict[str, Any], message: str
) -> None:
    build_tokenizer(metadata(**GOOD))
    with pytest.raises(ValueError, match=rf"^\[gguf\] .*{message}"):
        build_tokenizer(metadata(**GOOD | keys))
