# SPDX-License-Identifier: Apache-2.0
"""Messages to prompt text by the checkpoint's own Jinja template, sandboxed. No token ids here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.text import gguf_vocabulary

# The tokens that templates may name. Others (image markers and the like) belong to inputs we do not
# take.
_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class ChatTemplate:
    """One checkpoint's chat template. Immutable; safe to use from several threads.

    Templates see what Hugging Face's `apply_chat_template` gives them: messages, tools, documents,
    add_generation_prompt, the special tokens by name, `raise_exception`, `strftime_now`, a `tojson`
    that leaves HTML alone, loop controls and the `generation` tag.

    Args:
        source: Jinja source.
        special_tokens: name → text, e.g. {"bos_token": "<s>"}.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"[chat_template] template must be valid Jinja; got {error} in line {error.lineno}"
            ) from None

    @classmethod
    def from_pretrained(cls, path: str | Path | ModelFiles) -> ChatTemplate | None:
        """Load the template of a checkpoint directory (chat_template.jinja, else
        tokenizer_config.json's) or of a GGUF file.

        Returns:
            None where the checkpoint has no template (base models).

        Raises:
            ValueError: a file is unreadable, or the template is not valid Jinja.
        """
        opened = ModelFiles.open(path)
        if opened.gguf is not None:
            found = gguf_vocabulary.chat_template(gguf_vocabulary.metadata_of(opened.gguf))
            return None if found is None else cls(*found)
        config = _read_json(opened.path / "tokenizer_config.json")
        fallback = _read_json(opened.path / "special_tokens_map.json")
        tokens = {
            name: _token_text(config.get(name) or fallback.get(name)) for name in _TOKEN_NAMES
        }
        file = opened.path / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
        if isinstance(source, list):  # several named ones: tool use and retrieval have their own
            source = next(
                (item["template"] for item in source if item.get("name") == "default"), None
            )
        if source is None:
            return None
        return cls(source, {name: text for name, text in tokens.items() if text is not None})

    def render(
        self,
        /,  # a template may have a variable `self`
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt text of a conversation.

        Args:
            messages: {"role": …, "content": …} each; other keys are for the template to use or
                ignore.
            add_generation_prompt: end with the opening of the assistant's answer.
            **kwargs: more variables for the template, e.g. enable_thinking=False.

        Raises:
            ValueError: `[chat_template] …` with the template's own words, e.g. that roles must
                alternate.
        """
        variables = {"tools": None, "documents": None, **self._special_tokens, **kwargs}
        variables |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(variables)
        except jinja2.TemplateError as error:
            message = str(error)
        except Exception as error:
            # Templates are programs: whatever they run into is their verdict on the messages.
            message = f"{type(error).__name__}: {error}"
        roles = ", ".join(str(m.get("role")) for m in messages)
        raise ValueError(
            f"[chat_template] messages must suit the model's template; got {message} "
            f"(roles: {roles})"
        )


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it is
    only a scope."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares this attribute as a plain set

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _token_text(token: Any) -> str | None:
    """A special token as tokenizer_config.json spells it: text, or an object with the text under
    "content"."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"[chat_template] {file} must be readable JSON; got {error}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"[chat_template] {file} must hold a JSON object; got {type(content).__name__}"
        )
    return content
