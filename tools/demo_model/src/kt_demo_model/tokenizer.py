# SPDX-License-Identifier: Apache-2.0
"""tokenizer.json, tokenizer_config.json and generation_config.json from GGUF metadata.

Covers the one tokenizer the source has: byte-level BPE with the `smollm` pre-tokenizer.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL_TOKEN_TYPE = 3  # GGUF's token_type of a control token; ordinary ones are 1


def build_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """Build the fast tokenizer.

    Args:
        metadata: GGUF metadata, key -> value.

    Raises:
        ValueError: The metadata describe another kind of tokenizer.
    """
    kind = (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm"):
        raise ValueError(
            f"[tokenizer] the GGUF tokenizer must be gpt2/smollm; got {'/'.join(kind)}"
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    left_right = [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    merges = [(left, right) for left, right in left_right]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    # `smollm` means: every digit alone, then GPT-2's split into words, punctuation and spaces.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, token_type in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True)
            if token_type == CONTROL_TOKEN_TYPE
        ]
    )
    return tokenizer


def write_tokenizer(metadata: dict[str, Any], directory: Path) -> None:
    """Write the tokenizer's files, chat template and stop token included, into `directory`."""
    build_tokenizer(metadata).save(str(directory / "tokenizer.json"))
    tokens = metadata["tokenizer.ggml.tokens"]
    bos, eos, pad, unknown = (
        metadata[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos", "padding", "unknown")
    )
    # The generic class, because model-specific ones would put in their own pre-tokenizer.
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[bos],
        "eos_token": tokens[eos],
        "pad_token": tokens[pad],
        "unk_token": tokens[unknown],
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata["tokenizer.chat_template"],
    }
    generation_config = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    write_json(directory / "tokenizer_config.json", tokenizer_config)
    write_json(directory / "generation_config.json", generation_config)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented UTF-8 JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
