# SPDX-License-Identifier: Apache-2.0
"""Token ids to text as they come: whole characters, cut at stop strings. Not for whole texts."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from kt_runtime.text.tokenizer import Tokenizer


class StopStrings:
    """Finds the first of several strings in a text that arrives in pieces.

    Holds back only the longest end of the text that may yet become a stop string. The string that
    completes first wins, and of those that complete at the same character the longest, so the
    result does not depend on the pieces. Each string is followed by its Knuth-Morris-Pratt
    automaton: amortised constant work per character and string.

    Args:
        stop: the strings; none of them empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if not all(stop):
            raise ValueError(f"[detokenize] stop strings must not be empty; got {list(stop)!r}")
        self._stop = sorted(set(stop), key=len, reverse=True)
        self._borders = [_borders(s) for s in self._stop]
        # Characters of each string that the text now ends with.
        self._num_matched = [0] * len(self._stop)
        self._held = ""
        self.matched: str | None = None

    @property
    def num_held(self) -> int:
        """Characters held back."""
        return len(self._held)

    def feed(self, text: str) -> str:
        """Add text; returns what can no longer belong to a stop string. Nothing more comes after a
        match."""
        if self.matched is not None:
            return ""
        if not self._stop:
            return text
        start = len(self._held)
        self._held += text
        for position in range(start, len(self._held)):
            for i, stop in enumerate(self._stop):
                self._num_matched[i] = self._advance(i, self._held[position])
                if self._num_matched[i] == len(stop):
                    self.matched = stop
                    before, self._held = self._held[: position + 1 - len(stop)], ""
                    return before
        num_held = max(self._num_matched)
        cut = len(self._held) - num_held
        released, self._held = self._held[:cut], self._held[cut:]
        return released

    def flush(self) -> str:
        """The text has ended: returns what was held back."""
        released, self._held = self._held, ""
        return released

    def _advance(self, i: int, character: str) -> int:
        stop, borders, matched = self._stop[i], self._borders[i], self._num_matched[i]
        while matched and stop[matched] != character:
            matched = borders[matched - 1]
        return matched + 1 if stop[matched] == character else 0


def _borders(pattern: str) -> list[int]:
    """For each prefix of `pattern`, the length of its longest proper prefix that is also its
    suffix."""
    borders = [0] * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = borders[length - 1]
        length += pattern[i] == pattern[length]
        borders[i] = length
    return borders


class Detokenizer:
    """The text of one answer, token by token. Not thread-safe; one per request.

    The deltas of `feed` and `finish` together are `tokenizer.decode` of all ids, cut before the
    first stop string.

    Args:
        tokenizer: whose ids are fed.
        stop: strings that end the text; they are no part of it.
        skip_special_tokens: control tokens are no part of the text.
        continues_text: the ids continue a text of which the caller shows the beginning, so a space
            at their start belongs to them; otherwise the space that SentencePiece puts before every
            text is taken off.
        min_tokens: stop strings are looked for behind so many tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        skip_special_tokens: bool = True,
        continues_text: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = StopStrings(stop)
        self._unstoppable = min_tokens  # tokens still to come before a stop string counts
        self._leading_spaces = 0 if continues_text else tokenizer.leading_spaces

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._stops.matched

    @property
    def num_held(self) -> int:
        """Characters that are decoded and held back: they may yet belong to a stop string."""
        return self._stops.num_held

    def feed(self, token_id: int) -> str:
        """Add one token; returns the text that is now certain, often one word, sometimes
        nothing."""
        unstoppable = self._unstoppable > 0
        self._unstoppable -= unstoppable
        if token_id in self._skip:
            return ""
        text = self._decode(self._tokenizer.token_bytes(token_id), final=False)
        return text if unstoppable else self._stops.feed(text)

    def finish(self) -> str:
        """No more tokens: returns the rest. An incomplete character becomes U+FFFD."""
        return self._stops.feed(self._decode(b"", final=True)) + self._stops.flush()

    def _decode(self, data: bytes, final: bool) -> str:
        text = self._utf8.decode(data, final)
        while self._leading_spaces and text:
            if text[0] != " ":
                self._leading_spaces = 0
                break
            text = text[1:]
            self._leading_spaces -= 1
        return text
