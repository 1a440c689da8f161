# SPDX-License-Identifier: Apache-2.0
"""Tokenizer against the `tokenizers` library's own encode and decode."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, processors

from kt_runtime.text import Tokenizer

from .tiny_tokenizers import byte_level, sentencepiece

BYTE_LEVEL = byte_level()
SENTENCEPIECE = sentencepiece()
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(ids=st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1)), skip=st.booleans())
def test_byte_level_decode_equals_the_library_on_any_ids(ids: list[int], skip: bool) -> None:
    ours = Tokenizer(BYTE_LEVEL).decode(ids, skip_special_tokens=skip)
    assert ours == BYTE_LEVEL.decode(ids, skip_special_tokens=skip)


@given(text=TEXTS)
def test_byte_level_round_trip(text: str) -> None:
    tokenizer = Tokenizer(BYTE_LEVEL)
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


@given(text=TEXTS)
def test_sentencepiece_decode_equals_the_library_on_encoded_text(text: str) -> None:
    tokenizer = Tokenizer(SENTENCEPIECE)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == SENTENCEPIECE.decode(ids)


def test_sentencepiece_takes_off_the_space_it_put_on() -> None:
    tokenizer = Tokenizer(SENTENCEPIECE)
    assert tokenizer.leading_spaces == 1
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"


def test_token_bytes_are_the_bytes_of_one_token() -> None:
    tokenizer = Tokenizer(BYTE_LEVEL)
    ids = tokenizer.encode("東京 <think>")
    assert b"".join(map(tokenizer.token_bytes, ids)) == "東京 <think>".encode()
    sentencepiece_tokenizer = Tokenizer(SENTENCEPIECE)
    newline = sentencepiece_tokenizer.token_to_id("<0x0A>")
    assert newline is not None
    assert sentencepiece_tokenizer.token_bytes(newline) == b"\n"


def test_control_tokens_are_special_and_other_added_tokens_are_text() -> None:
    tokenizer = Tokenizer(BYTE_LEVEL)
    assert tokenizer.special_ids == {
        tokenizer.token_to_id(t) for t in ("<|end|>", "<|user|>", "<|assistant|>")
    }
    ids = tokenizer.encode("<|user|>hi<think><|end|>")
    assert tokenizer.decode(ids) == "hi<think>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|user|>hi<think><|end|>"


def test_ids_beyond_the_vocabulary_decode_to_nothing() -> None:
    tokenizer = Tokenizer(BYTE_LEVEL)
    assert tokenizer.decode([tokenizer.vocab_size, 10**9, -1]) == ""
    assert tokenizer.token_to_id("no such token") is None


def test_special_tokens_are_added_only_when_asked_for() -> None:
    backend = byte_level()
    backend.post_processor = processors.TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", 1)]
    )
    tokenizer = Tokenizer(backend)
    assert tokenizer.encode("hi", add_special_tokens=True) == [1, *tokenizer.encode("hi")]


def test_saved_truncation_and_padding_do_not_apply() -> None:
    backend = byte_level()
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    tokenizer = Tokenizer(backend)
    assert tokenizer.decode(tokenizer.encode("The capital of France")) == "The capital of France"


def test_from_pretrained_reads_tokenizer_json(tmp_path: Path) -> None:
    BYTE_LEVEL.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.vocab_size == BYTE_LEVEL.get_vocab_size()
    assert tokenizer.encode("Paris") == BYTE_LEVEL.encode("Paris").ids


def test_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[tokenizer\] tokenizer.json must exist.*transformers"):
        Tokenizer.from_pretrained(tmp_path)


def test_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(ValueError, match=r"\[tokenizer\] .*tokenizer.json must be a readable"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(), decoders.CTC()])
def test_a_decoder_that_cannot_stream_is_refused(decoder: decoders.Decoder | None) -> None:
    backend = Backend(models.BPE())
    if decoder is not None:
        backend.decoder = decoder
    with pytest.raises(ValueError, match=r"\[tokenizer\] decoder must be byte-level BPE or"):
        Tokenizer(backend)


def test_the_longest_token_bounds_the_text_of_any_ids() -> None:
    tokenizer = Tokenizer(BYTE_LEVEL)
    assert tokenizer.max_token_length == max(map(len, BYTE_LEVEL.get_vocab()))
    text = "The capital of France is Paris. \u00e9\u4e16\u754c"
    assert len(text) <= len(tokenizer.encode(text)) * tokenizer.max_token_length


def test_half_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(
        ValueError, match=r"\[tokenizer\] text must be valid Unicode; got 'a.ud800'"
    ):
        Tokenizer(BYTE_LEVEL).encode("a\ud800")
