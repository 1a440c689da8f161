# SPDX-License-Identifier: Apache-2.0
"""Deltas join to the decoded text cut at the first stop string, however tokens split it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_runtime.text import Detokenizer, Tokenizer
from kt_runtime.text.detokenize import StopStrings

from .tiny_tokenizers import byte_level, sentencepiece

BYTE_LEVEL = Tokenizer(byte_level())
SENTENCEPIECE = Tokenizer(sentencepiece())
IDS = st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), max_size=60)


def single_byte_ids(text: str) -> list[int]:
    """The text as one token per byte: every character is split in every place it can be."""
    ids_by_byte = {BYTE_LEVEL.token_bytes(i): i for i in reversed(range(BYTE_LEVEL.vocab_size))}
    return [ids_by_byte[bytes([byte])] for byte in text.encode()]


def stream(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.feed(i) for i in ids), detokenizer.finish()]


def cut_at_first_stop(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The plain definition: the stop that completes first; of equals the longest."""
    found = [(text.find(s) + len(s), -len(s), s) for s in stop if s in text]
    if not found:
        return text, None
    end, negative_length, matched = min(found)
    return text[: end + negative_length], matched


@given(ids=IDS, skip=st.booleans())
def test_deltas_join_to_decode(ids: list[int], skip: bool) -> None:
    deltas = stream(Detokenizer(BYTE_LEVEL, skip_special_tokens=skip), ids)
    assert "".join(deltas) == BYTE_LEVEL.decode(ids, skip_special_tokens=skip)


@given(ids=st.lists(st.integers(0, SENTENCEPIECE.vocab_size - 1), max_size=60))
def test_deltas_join_to_decode_with_byte_fallback(ids: list[int]) -> None:
    deltas = stream(Detokenizer(SENTENCEPIECE), ids)
    assert "".join(deltas) == SENTENCEPIECE.decode(ids)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_split_characters_never_show_as_replacement(text: str) -> None:
    deltas = stream(Detokenizer(BYTE_LEVEL), single_byte_ids(text))
    assert "".join(deltas) == text
    assert "\N{REPLACEMENT CHARACTER}" in text or not any(
        "\N{REPLACEMENT CHARACTER}" in delta for delta in deltas
    )


@given(
    text=st.text("abc ", max_size=40),
    stop=st.lists(st.text("abc ", min_size=1, max_size=5), max_size=4),
    data=st.data(),
)
def test_stop_strings_do_not_depend_on_the_pieces(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    stops = StopStrings(stop)
    released = "".join([*(stops.feed(piece) for piece in pieces), stops.flush()])
    assert (released, stops.matched) == cut_at_first_stop(text, stop)


@given(ids=IDS, stop=st.lists(st.sampled_from(["e", "the", " P", "東京", "京", "ü", "is Paris"])))
def test_deltas_join_to_decode_cut_at_the_first_stop(ids: list[int], stop: list[str]) -> None:
    detokenizer = Detokenizer(BYTE_LEVEL, stop)
    text = "".join(stream(detokenizer, ids))
    assert (text, detokenizer.stopped) == cut_at_first_stop(BYTE_LEVEL.decode(ids), stop)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    detokenizer = Detokenizer(BYTE_LEVEL, ["END."])
    deltas = [detokenizer.feed(i) for i in single_byte_ids("an EN\nE")]
    assert deltas == ["a", "n", " ", "", "", "EN\n", ""]
    assert detokenizer.finish() == "E"
    assert detokenizer.stopped is None


def test_a_stop_string_split_over_tokens_leaves_no_trace() -> None:
    detokenizer = Detokenizer(BYTE_LEVEL, ["\n\n", "###"])
    deltas = []
    for i in single_byte_ids("yes##\n\nno"):
        deltas.append(detokenizer.feed(i))
        if detokenizer.stopped:
            break
    assert "".join(deltas) == "yes##"
    assert detokenizer.stopped == "\n\n"
    assert detokenizer.feed(single_byte_ids("x")[0]) == detokenizer.finish() == ""


def test_an_incomplete_character_shows_at_the_end_only() -> None:
    detokenizer = Detokenizer(BYTE_LEVEL)
    assert [detokenizer.feed(i) for i in single_byte_ids("東")[:2]] == ["", ""]
    assert detokenizer.finish() == "\N{REPLACEMENT CHARACTER}"


def test_a_continued_text_keeps_its_leading_space() -> None:
    ids = SENTENCEPIECE.encode("the")
    assert "".join(stream(Detokenizer(SENTENCEPIECE), ids)) == "the"
    assert "".join(stream(Detokenizer(SENTENCEPIECE, continues_text=True), ids)) == " the"


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[detokenize\] stop strings must not be empty"):
        Detokenizer(BYTE_LEVEL, ["ok", ""])


def test_work_grows_with_the_text_and_not_faster() -> None:
    """Eight times the tokens take about eight times as long, even where every one may be a stop."""
    token = single_byte_ids("a")[0]

    def seconds(num_tokens: int) -> float:
        detokenizer = Detokenizer(BYTE_LEVEL, ["a" * 5000 + "b"])
        started = time.perf_counter()
        for _ in range(num_tokens):
            detokenizer.feed(token)
        return time.perf_counter() - started

    seconds(1000)
    short = min(seconds(8000) for _ in range(3))
    assert seconds(64000) < 8 * short * 4  # quadratic work would be 8 times more than linear
