# SPDX-License-Identifier: Apache-2.0
"""ChatTemplate renders byte for byte what transformers' apply_chat_template renders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kt_runtime.inspect import resolve_model
from kt_runtime.text import ChatTemplate

from .tiny_tokenizers import byte_level

CHATML = """{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
<|im_start|>system
You are helpful.<|im_end|>
    {% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
"""
ALTERNATING = """{{ bos_token }}{% for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Roles must alternate user/assistant!') }}
{%- endif -%}
{%- if message['role'] == 'user' %} [INST] {{ message['content'] | trim }} [/INST]
{%- else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"""
EVERYTHING = """{%- set ns = namespace(count=0) -%}
{%- for message in messages -%}
    {%- if message.role == 'skip' -%}{%- continue -%}{%- endif -%}
    {%- if message.role == 'halt' -%}{%- break -%}{%- endif -%}
    {%- set ns.count = ns.count + 1 -%}
    {{ message | tojson }}|{{ message | tojson(indent=2) }}|
    {{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}
    {% generation %}
        {%- set inner = message.content -%}
    {{ inner }}
    {% endgeneration %}
    {{- inner is defined -}}
{%- endfor -%}
{{ ns.count }} {{ tools is none }} {{ documents is none }} {{ enable_thinking }}
{{ pad_token is defined }}
{{ messages[0].content.split('<')[-1].strip('>') }} {{ dict(a=1)['a'] }}
"""
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "user", "content": "  <b>&'\"</b>\n\n東京 🙂 "},
        {"role": "assistant", "content": "{{ 7 * 7 }} {% raw %}"},
        {"role": "user", "content": ""},
    ],
]


def save_checkpoint(path: Path, template: str | list[dict[str, str]] | None, **config: Any) -> Path:
    byte_level().save(str(path / "tokenizer.json"))
    eos_token = {"__type": "AddedToken", "content": "<|end|>", "special": True}
    tokens = {"bos_token": "<|user|>", "eos_token": eos_token}
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens, **config}
    if template is not None:
        content["chat_template"] = template
    (path / "tokenizer_config.json").write_text(json.dumps(content))
    return path


def assert_same_as_transformers(path: Path, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    from transformers import AutoTokenizer

    template = ChatTemplate.from_pretrained(path)
    assert template is not None
    ours = template.render(messages, **kwargs)
    options = {"add_generation_prompt": True, **kwargs}
    theirs = AutoTokenizer.from_pretrained(path).apply_chat_template(
        messages, tokenize=False, **options
    )
    assert ours == theirs
    return ours


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("template", [CHATML, ALTERNATING, EVERYTHING])
def test_renders_as_transformers_does(
    tmp_path: Path, template: str, messages: list[dict[str, Any]]
) -> None:
    save_checkpoint(tmp_path, template)
    with_prompt = assert_same_as_transformers(tmp_path, messages, enable_thinking=False)
    assert messages[0]["content"].strip() in with_prompt
    assert_same_as_transformers(tmp_path, messages, add_generation_prompt=False)


def test_loop_controls_reach_the_template(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, EVERYTHING)
    roles = ("user", "skip", "user", "halt", "user")
    messages = [{"role": role, "content": f"<{role}>"} for role in roles]
    rendered = assert_same_as_transformers(tmp_path, messages)
    assert rendered.count('"role": "user"') == 4  # two messages, each twice
    assert "skip" not in rendered


def test_strftime_now_gives_today() -> None:
    from datetime import datetime

    rendered = ChatTemplate("{{ strftime_now('%d %b %Y') }}").render([])
    assert rendered == datetime.now().strftime("%d %b %Y")


def test_template_file_goes_before_the_configuration(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "from the configuration")
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert assert_same_as_transformers(tmp_path, CONVERSATIONS[0]) == "from the file"


def test_the_default_of_several_templates_is_used(tmp_path: Path) -> None:
    templates = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "plain"},
    ]
    save_checkpoint(tmp_path, templates)
    assert assert_same_as_transformers(tmp_path, CONVERSATIONS[0]) == "plain"


def test_base_models_have_no_template(tmp_path: Path) -> None:
    assert ChatTemplate.from_pretrained(save_checkpoint(tmp_path, None)) is None


def test_the_template_s_own_objection_is_a_value_error() -> None:
    template = ChatTemplate(ALTERNATING, {"bos_token": "<s>", "eos_token": "</s>"})
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(ValueError, match=r"\[chat_template\] .*Roles must alternate.*user, user"):
        template.render(messages)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0]['content'] + 1 }}",
        "{{ messages[9].role }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ range(99999999) | list }}",
    ],
)
def test_whatever_a_template_runs_into_is_a_value_error(source: str) -> None:
    with pytest.raises(ValueError, match=r"\[chat_template\] messages must suit"):
        ChatTemplate(source).render(CONVERSATIONS[0])


def test_invalid_jinja_names_the_line() -> None:
    with pytest.raises(ValueError, match=r"\[chat_template\] template must be valid Jinja.*line 2"):
        ChatTemplate("ok\n{% if %}")


def test_unreadable_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"\[chat_template\] .*tokenizer_config.json must be"):
        ChatTemplate.from_pretrained(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_demo_model_renders_as_transformers_does(messages: list[dict[str, Any]]) -> None:
    path = resolve_model("smolmoe-exact")
    assert assert_same_as_transformers(path, messages).endswith("<|im_start|>assistant\n")
