# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back by a checkpoint's own tokenizer. Streams are detokenize.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.text import gguf_vocabulary

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE vocabularies (GPT-2's definition).

    Printable Latin-1 characters stand for themselves, the other 68 bytes for the characters from
    U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return alphabet


_BYTE_OF_CHARACTER = _byte_alphabet()


class Tokenizer:
    """One checkpoint's tokenizer. Immutable; safe to use from several threads.

    Decoding joins the bytes of the tokens and reads them as UTF-8, so that a stream can be decoded
    token by token without looking back. This covers byte-level BPE and SentencePiece with byte
    fallback, the two kinds in use.

    Attributes:
        special_ids: ids of control tokens, which are no part of the text.
        leading_spaces: how many spaces the tokenizer puts before every text, so that decoding takes
            them off again.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # Some checkpoints save their training's settings; a prompt is never cut silently.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._byte_level = False
        self._byte_fallback = False
        self._replacements: list[tuple[str, str]] = []
        self.leading_spaces = 0
        self._read_decoder()
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_pretrained(cls, path: str | Path | ModelFiles) -> Tokenizer:
        """Load tokenizer.json of a checkpoint directory, or the tokenizer of a GGUF file.

        Raises:
            ValueError: it is missing, unreadable, or of a kind that cannot be decoded token by
                token.
        """
        opened = ModelFiles.open(path)
        if opened.gguf is not None:
            metadata = gguf_vocabulary.metadata_of(opened.gguf)
            return cls(gguf_vocabulary.build_tokenizer(metadata))
        file = opened.path / "tokenizer.json"
        if not file.is_file():
            raise ValueError(
                f"[tokenizer] tokenizer.json must exist in the model directory; got {opened.path}. "
                "Where the checkpoint has another tokenizer format, write it once with "
                "transformers: AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:
            # The library raises bare Exception for whatever is wrong with the file.
            raise ValueError(
                f"[tokenizer] {file} must be a readable tokenizer; got {error}"
            ) from None
        return cls(backend)

    @staticmethod
    def is_in(path: str | Path | ModelFiles) -> bool:
        """Whether a checkpoint directory or GGUF file has a tokenizer."""
        opened = ModelFiles.open(path)
        if opened.gguf is not None:
            return gguf_vocabulary.has_vocabulary(gguf_vocabulary.metadata_of(opened.gguf))
        return (opened.path / "tokenizer.json").is_file()

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included. The model's own vocab_size may be padded beyond
        it."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @cached_property
    def max_token_length(self) -> int:
        """Characters of the longest token: no text of n * max_token_length + 1 has n tokens, unless
        the tokenizer itself shortens texts (e.g. joins spaces) more than its words are short."""
        return max(map(len, self._backend.get_vocab(with_added_tokens=True)))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of `text`.

        Args:
            text: control tokens written out in it become their ids, as chat templates need.
            add_special_tokens: also put the tokenizer's own beginning-of-text tokens around it, as
                for a raw prompt.

        Raises:
            ValueError: surrogates in the text, which no encoding of Unicode has.
        """
        try:
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except TypeError:
            raise ValueError(f"[tokenizer] text must be valid Unicode; got {text!r:.100}") from None

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`. Bytes that are not UTF-8 become U+FFFD; ids without a token
        (padding) nothing."""
        skip = self.special_ids if skip_special_tokens else frozenset()
        data = b"".join(self.token_bytes(i) for i in token_ids if i not in skip)
        text = data.decode("utf-8", errors="replace")
        spaces = len(text) - len(text.lstrip(" "))
        return text[min(spaces, self.leading_spaces) :]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds to the text; empty for an id that has no token."""
        data = self._bytes.get(token_id)
        if data is None:
            token = self._backend.id_to_token(token_id) if token_id >= 0 else None
            data = b"" if token is None else self._decode_token(token)
            self._bytes[token_id] = data
        return data

    def token_to_id(self, token: str) -> int | None:
        """The id of exactly this token, or None."""
        token_id = self._backend.token_to_id(token)
        return None if token_id is None else int(token_id)

    def _decode_token(self, token: str) -> bytes:
        if self._byte_level:
            # An added token may hold characters outside the alphabet; it then stands for itself.
            values = [_BYTE_OF_CHARACTER.get(character) for character in token]
            known = [value for value in values if value is not None]
            return bytes(known) if len(known) == len(values) else token.encode()
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for pattern, replacement in self._replacements:
            token = token.replace(pattern, replacement)
        return token.encode()

    def _read_decoder(self) -> None:
        decoder = self._backend.decoder
        state: dict[str, Any] = json.loads(decoder.__getstate__()) if decoder else {"type": "none"}
        for step in state["decoders"] if state["type"] == "Sequence" else [state]:
            kind = step["type"]
            if kind == "ByteLevel":
                self._byte_level = True
            elif kind == "ByteFallback":
                self._byte_fallback = True
            elif kind == "Replace" and "String" in step["pattern"]:
                self._replacements.append((step["pattern"]["String"], step["content"]))
            elif kind == "Metaspace":
                self._replacements.append((step["replacement"], " "))
                self.leading_spaces = int(step.get("prepend_scheme", "always") != "never")
            elif kind == "Strip" and step["content"] == " " and step["stop"] == 0:
                self.leading_spaces = step["start"]
            elif kind != "Fuse":
                raise ValueError(
                    "[tokenizer] decoder must be byte-level BPE or SentencePiece (ByteLevel, "
                    f"Replace, ByteFallback, Metaspace, Fuse, Strip); got {step}"
                )
