# SPDX-License-Identifier: Apache-2.0
"""Tokenizer and chat template out of a GGUF file's metadata. Encodes nothing itself: the library
`tokenizers` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from kt_runtime.checkpoint.gguf import Gguf
from kt_runtime.checkpoint.model_dir import ModelConfig

# tokenizer.ggml.token_type: what is no ordinary text.
CONTROL, USER_DEFINED = 3, 4
# Names under which tokens are known to chat templates → the metadata key that holds the id.
TOKEN_KEYS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "sep_token": "tokenizer.ggml.seperator_token_id",  # as the format spells it
    "pad_token": "tokenizer.ggml.padding_token_id",
    "cls_token": "tokenizer.ggml.cls_token_id",
    "mask_token": "tokenizer.ggml.mask_token_id",
}
END_KEYS = (
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
)
# Files seldom name all tokens that end an answer; these control tokens do wherever they exist, as
# they do for llama.cpp.
END_TOKENS = frozenset(
    (
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<EOT>",
        "</s>",
    )
)
# Longer pieces of a SentencePiece vocabulary are refused: finding the merges of a piece takes its
# length squared, and published ones have at most 48 characters.
MAX_PIECE = 256

_GPT2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # Radford, 2019
)
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _Pre:
    """How a byte-level vocabulary wants its text cut before merging.

    Attributes:
        splits: regular expressions, one after the other on what the one before left whole.
        ignore_merges: a word that is a token is that token, whatever its merges say.
        add_bos: whether a text begins with the bos token where the file does not say.
        nfc: whether the text is put into Unicode's composed form first.
    """

    splits: Sequence[str]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


_DIGIT_THEN_GPT2 = _Pre((r"\p{N}", _GPT2))
_LLAMA3 = _Pre((_WORDS.replace("DIGITS", r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)
_QWEN2 = _Pre((_WORDS.replace("DIGITS", r"\p{N}"),), nfc=True)
# By tokenizer.ggml.pre.
PRE_TOKENIZERS: Mapping[str, _Pre] = {
    "default": _Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _Pre((_GPT2,)),
    "smollm": _DIGIT_THEN_GPT2,
    "starcoder": _DIGIT_THEN_GPT2,
    "refact": _DIGIT_THEN_GPT2,
    "command-r": _DIGIT_THEN_GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


def metadata_of(gguf: Gguf) -> ModelConfig:
    """The keys of a GGUF file."""
    return ModelConfig(gguf.metadata, gguf.path)


def has_vocabulary(metadata: ModelConfig) -> bool:
    """Whether the file carries a tokenizer; "no_vocab" is how files say that they do not."""
    return metadata.text("tokenizer.ggml.model", default="no_vocab") not in ("no_vocab", "none")


def build_tokenizer(metadata: ModelConfig) -> Tokenizer:
    """The tokenizer that the metadata describe.

    Raises:
        ValueError: `[gguf] …` naming the key: a kind of tokenizer that is not in BUILDERS, a
            pre-tokenizer not in PRE_TOKENIZERS, or lists that do not belong together.
    """
    kind = metadata.text("tokenizer.ggml.model")
    if kind not in BUILDERS:
        raise ValueError(
            f"[gguf] tokenizer.ggml.model must be one of {', '.join(BUILDERS)}; got {kind!r}"
        )
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    try:
        tokenizer, add_bos = BUILDERS[kind](metadata, tokens)
        tokenizer.add_tokens(_added_tokens(metadata, tokens))
    except ValueError:
        raise
    except Exception as error:
        # The library raises bare Exception for whatever is wrong with the lists.
        raise ValueError(
            f"[gguf] tokenizer.ggml.tokens and merges must make a tokenizer; got {error}"
        ) from None
    _add_ends(tokenizer, metadata, add_bos)
    return tokenizer


def chat_template(metadata: ModelConfig) -> tuple[str, dict[str, str]] | None:
    """Jinja source and the special tokens by name; None without a template."""
    if metadata.get("tokenizer.chat_template") is None:
        return None
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    ids = {name: _token_id(metadata, key, tokens) for name, key in TOKEN_KEYS.items()}
    named = {name: tokens[i] for name, i in ids.items() if i is not None}
    return metadata.text("tokenizer.chat_template"), named


def end_token_ids(metadata: ModelConfig) -> tuple[int, ...]:
    """Ids that end an answer, ascending; empty without a vocabulary."""
    if not has_vocabulary(metadata):
        return ()
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    types = _types(metadata, tokens)
    ids = {_token_id(metadata, key, tokens) for key in END_KEYS} - {None}
    ids |= {i for i, kind in enumerate(types) if kind == CONTROL and tokens[i] in END_TOKENS}
    return tuple(sorted(i for i in ids if i is not None))


def _byte_level(metadata: ModelConfig, tokens: Sequence[str]) -> tuple[Tokenizer, bool]:
    name = metadata.text("tokenizer.ggml.pre", default="default")
    if name not in PRE_TOKENIZERS:
        raise ValueError(
            f"[gguf] tokenizer.ggml.pre must be one of {', '.join(PRE_TOKENIZERS)}; got {name!r}"
        )
    pre = PRE_TOKENIZERS[name]
    merges = []
    for merge in _strings(metadata, "tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")
        if not (left and space and right):
            raise ValueError(
                f"[gguf] tokenizer.ggml.merges must be two tokens with a space between; "
                f"got {merge!r:.100}"
            )
        merges.append((left, right))
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in pre.splits]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre.add_bos


def _sentencepiece(metadata: ModelConfig, tokens: Sequence[str]) -> tuple[Tokenizer, bool]:
    """Pieces with scores: the pair that makes the piece of the highest score is merged first."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, Sequence) and not hasattr(scores, "tolist"):
        raise ValueError(f"[gguf] tokenizer.ggml.scores must be a list; got {scores!r:.100}")
    if len(scores) != len(tokens):
        raise ValueError(
            f"[gguf] tokenizer.ggml.scores must be one per token, {len(tokens)}; got {len(scores)}"
        )
    unknown = _token_id(metadata, TOKEN_KEYS["unk_token"], tokens)
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab,
            _merges_by_score(vocab, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", default=True)
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), *spaces] if prefix else spaces
    )
    strip: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer, True


BUILDERS: Mapping[str, Callable[[ModelConfig, Sequence[str]], tuple[Tokenizer, bool]]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
}


def _merges_by_score(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    found = []
    for piece, i in vocab.items():
        if len(piece) > MAX_PIECE:
            raise ValueError(
                f"[gguf] tokenizer.ggml.tokens must have at most {MAX_PIECE} characters each; "
                f"got {len(piece)} in token {i}"
            )
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                found.append((-scores[i], vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _added_tokens(metadata: ModelConfig, tokens: Sequence[str]) -> list[AddedToken]:
    """What is looked for in the text as it is written, before it is cut."""
    return [
        AddedToken(tokens[i], special=kind == CONTROL, normalized=False)
        for i, kind in enumerate(_types(metadata, tokens))
        if kind in (CONTROL, USER_DEFINED) and tokens[i]
    ]


def _add_ends(tokenizer: Tokenizer, metadata: ModelConfig, add_bos: bool) -> None:
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    pieces, special = ["$A"], []
    for name, default, at in (("bos", add_bos, 0), ("eos", False, 2)):
        token_id = _token_id(metadata, TOKEN_KEYS[f"{name}_token"], tokens)
        if metadata.flag(f"tokenizer.ggml.add_{name}_token", default=default) and (
            token_id is not None
        ):
            pieces.insert(at, f"{name}:0")
            special.append({"id": name, "ids": [token_id], "tokens": [tokens[token_id]]})
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=pieces, special_tokens=special
        )


def _token_id(metadata: ModelConfig, key: str, tokens: Sequence[str]) -> int | None:
    if metadata.get(key) is None:
        return None
    token_id = metadata.size(key, at_least=0)
    if token_id >= len(tokens):
        raise ValueError(f"[gguf] {key} must be below {len(tokens)}; got {token_id}")
    return token_id


def _types(metadata: ModelConfig, tokens: Sequence[str]) -> Sequence[int]:
    key = "tokenizer.ggml.token_type"
    types = metadata.get(key)
    if types is None:
        return []
    if not hasattr(types, "typecode") or len(types) != len(tokens):
        raise ValueError(f"[gguf] {key} must be one number per token, {len(tokens)}; got another")
    numbers: Sequence[int] = types
    return numbers


def _strings(metadata: ModelConfig, key: str) -> Sequence[str]:
    values = metadata.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"[gguf] {key} must be a list of strings; got {type(values).__name__}")
    return values
