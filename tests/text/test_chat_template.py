"""Chat templates are found and rendered as by transformers, and each fault is a one-line error."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from llmcli.errors import LlmcliError
from llmcli.text.chat_template import ChatTemplate, Message, find_template

SHARED = Path(__file__).parents[3] / "shared" / "checkpoints"
REAL = [
    *sorted(path for path in (SHARED / "chat-templates").glob("*")),
    *(SHARED / "tokenizers" / name for name in ("qwen2.5-0.5b-instruct", "tinyllama-1.1b-chat")),
]
CONVERSATIONS = [
    [("user", "hi")],
    [("user", "")],
    [("system", "Be brief."), ("user", "ünï 🙂 한국어\n\n"), ("assistant", "  ok\n"), ("user", " again ")],
    [("system", ""), ("user", "a"), ("assistant", ""), ("user", "b")],
    [("user", "{{ 1 }} {% raw %} <b>&amp;"), ("assistant", "<think>\nhm\n</think>\n\nyes"), ("user", "c")],
    [("system", "/no_think be quick"), ("user", "a"), ("assistant", "</think>b"), ("user", "<tool_response>")],
]


def messages(conversation: list[tuple[str, str]]) -> list[Message]:
    return [Message(role, content) for role, content in conversation]


def dicts(conversation: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in conversation]


# --- rendering ---


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs files of real models")
@pytest.mark.parametrize("generation_prompt", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
@pytest.mark.parametrize("folder", REAL, ids=lambda path: path.name)
def test_templates_are_rendered_as_by_transformers(
    folder: Path, conversation: list[tuple[str, str]], generation_prompt: bool
) -> None:
    template = find_template(folder)
    assert template is not None
    # The reference shares only the template's source; its tokens come from the files.
    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {name: config[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token") if config.get(name)}
    (expected,), _ = render_jinja_template(
        [dicts(conversation)], chat_template=template.source, add_generation_prompt=generation_prompt, **tokens
    )
    assert template.render(messages(conversation), add_generation_prompt=generation_prompt) == expected


# Features of Jinja that published templates use.
FEATURES = [
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\nend",
    "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m['content'] }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content | trim }};{% endfor %}",
    "{{ messages | tojson }}{{ {'b': '<é>', 'a': [1, none]} | tojson(indent=2, sort_keys=true) }}",
    "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ tools is none }}{{ documents is none }}",
    "{% set n = namespace(a=0) %}{% for m in messages %}{% set n.a = n.a + m.content|length %}{% endfor %}{{ n.a }}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}[{{ x }}]{% endgeneration %}{{ x }}",
    "{%- for m in messages[::-1] -%} {{ m.content.split('</think>')[-1].strip() }} {%- endfor -%}",
    "{% macro say(m) %}<{{ m.role | upper }}>{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}\n",
    "{{ strftime_now('%Y') }}{{ dict(a=1)['a'] }}{{ range(3) | list }}{{ 'a' ~ 1 }}",
    "{% if enable_thinking is defined and not enable_thinking %}x{% endif %}{{ missing }}{{ messages[0].missing }}",
]


@pytest.mark.parametrize("source", FEATURES)
@pytest.mark.parametrize("conversation", CONVERSATIONS[:4], ids=range(4))
def test_jinja_features_are_rendered_as_by_transformers(source: str, conversation: list[tuple[str, str]]) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    (expected,), _ = render_jinja_template(
        [dicts(conversation)], chat_template=source, add_generation_prompt=True, **tokens
    )
    assert ChatTemplate(source, tokens, Path("x")).render(messages(conversation)) == expected


def test_the_date_is_today() -> None:
    before = datetime.now().strftime("%d %B %Y")
    shown = ChatTemplate("{{ strftime_now('%d %B %Y') }}", {}, Path("x")).render([])
    assert shown in (before, datetime.now().strftime("%d %B %Y"))


# --- finding the template ---


def folder_with(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    FastTokenizer(models.WordLevel({"a": 0, "<s>": 1}, unk_token="a")).save(str(folder / "tokenizer.json"))
    return folder


NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named {{ bos_token }}"}]
OBJECT = {"content": "<s>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
LOCATIONS: dict[str, dict[str, Any]] = {
    "config": {"tokenizer_config.json": {"chat_template": "config", "bos_token": "<s>"}},
    "named": {"tokenizer_config.json": {"chat_template": NAMED, "bos_token": "<s>"}},
    "object": {
        "tokenizer_config.json": {"chat_template": "{{ bos_token }}", "bos_token": {"__type": "AddedToken"} | OBJECT}
    },
    "jinja first": {"tokenizer_config.json": {"chat_template": "config"}, "chat_template.jinja": "file é"},
    "jinja alone": {"chat_template.jinja": "{{ bos_token }}file", "tokenizer_config.json": {"bos_token": "<s>"}},
    "older map": {
        "tokenizer_config.json": {"chat_template": "{{ bos_token }}"},
        "special_tokens_map.json": {"bos_token": OBJECT},
    },
    "no map": {
        "tokenizer_config.json": {
            "chat_template": "[{{ eos_token }}]",
            "added_tokens_decoder": {"1": OBJECT | {"special": True}},
        },
        "special_tokens_map.json": {"eos_token": "<s>"},
    },
}


@pytest.mark.parametrize("location", LOCATIONS)
def test_templates_are_found_where_transformers_finds_them(location: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, LOCATIONS[location])
    config = json.loads((folder / "tokenizer_config.json").read_text())
    copy = tmp_path / "theirs"
    shutil.copytree(folder, copy)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(copy)
    template = find_template(folder)
    assert template is not None
    rendered = theirs.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert template.render([Message("user", "x")], add_generation_prompt=False) == rendered


def test_the_older_file_is_used_when_it_is_the_only_one(tmp_path: Path) -> None:
    folder_with(tmp_path, {"chat_template.json": {"chat_template": "older"}})
    template = find_template(tmp_path)
    assert template is not None
    assert template.render([]) == "older"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "newer"}))
    template = find_template(tmp_path)
    assert template is not None
    assert template.render([]) == "newer"


@pytest.mark.parametrize(
    "files", [{}, {"tokenizer_config.json": {}}, {"tokenizer_config.json": {"chat_template": None}}]
)
def test_a_model_without_a_template(files: dict[str, Any], tmp_path: Path) -> None:
    assert find_template(folder_with(tmp_path, files)) is None


# --- faults ---

BROKEN: dict[str, Any] = {
    "not a string": 7,
    "a list of strings": ["x"],
    "an empty list": [],
    "no default": [{"name": "tool_use", "template": "x"}],
    "default is not a string": [{"name": "default", "template": None}],
    "syntax": "{% for %}",
    "not closed": "{% if messages %}",
    "unknown filter": "{{ messages | frobnicate }}",
    "unknown tag": "{% frobnicate %}",
    "nested too deeply": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "a constant that fails": "{{ 1 // 0 }}",
}
FAILING = {
    "a lone surrogate": "{{ '\\ud83d' }}{{ messages[0].content }}",
    "refused": "{{ raise_exception('Conversation roles\nmust alternate') }}",
    "attribute of undefined": "{{ messages[0].a.b }}",
    "sum with undefined": "{{ 'x' + eos_token }}",
    "needs tools": "{{ tools | length }}",
    "missing message": "{{ messages[7]['content'] }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "format": "{{ '{0.__class__.__init__.x}'.format(messages) }}",
    "changes the messages": "{{ messages.append(1) }}",
    "a file": "{% include '/etc/passwd' %}",
    "endless": "{% for n in range(999999999) %}x{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "not a number": "{{ 'x' * 'y' }}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_invalid_template_is_a_one_line_error(name: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"tokenizer_config.json": {"chat_template": BROKEN[name]}})

    def render() -> None:
        template = find_template(folder)
        assert template is not None
        template.render([Message("user", "x")])

    with pytest.raises(LlmcliError) as caught:
        render()
    assert str(tmp_path / "tokenizer_config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FAILING)
def test_a_failing_template_is_a_one_line_error(name: str) -> None:
    template = ChatTemplate(FAILING[name], {}, Path("folder/x.jinja"))
    with pytest.raises(LlmcliError) as caught:
        template.render([Message("user", "secret")])
    message = str(caught.value)
    assert message.startswith(f"{Path('folder/x.jinja')}: the chat template ")
    assert "\n" not in message
    assert ("rejects this conversation: Conversation roles must alternate" in message) == (name == "refused")


def test_a_pointer_in_place_of_the_template(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n")
    with pytest.raises(LlmcliError, match=r"chat_template\.jinja: this is a Git LFS pointer"):
        find_template(tmp_path)


def test_an_unreadable_file(tmp_path: Path) -> None:
    template = tmp_path / "chat_template.jinja"
    template.mkdir()
    assert find_template(tmp_path) is None
    template.rmdir()
    for data, message in ((b"\xff{{", "not valid UTF-8 at byte 0"), (b" \n", "the chat template is empty")):
        template.write_bytes(data)
        with pytest.raises(LlmcliError, match=message):
            find_template(tmp_path)
