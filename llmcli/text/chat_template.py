"""A model's chat template: how the messages of a conversation become one text.

Found where transformers looks, and rendered as ``apply_chat_template`` does, in Jinja's sandbox: a template is
code from somebody else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmcli.errors import LlmcliError
from llmcli.files.json import read_json

CONFIG, JINJA, OLDER = "tokenizer_config.json", "chat_template.jinja", "chat_template.json"
ROLES = ("system", "user", "assistant")
# The named tokens that a template may write.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Message:
    """What one of ``ROLES`` said."""

    role: str
    content: str


class ChatTemplate:
    """A template's source, compiled. ``tokens`` are the special tokens it may name; ``path`` is where it was found.

    Errors: it is no valid template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], path: Path) -> None:
        self.source = source
        self.path = path
        self._tokens = dict(tokens)
        try:
            self._template: Template = _ENVIRONMENT.from_string(source)
        except TemplateSyntaxError as error:
            raise self._error(f"{error.message} (line {error.lineno})", "is not valid") from error
        except Exception as error:  # Jinja compiles it to Python, and works out what is constant
            raise self._error(f"{type(error).__name__}: {error}", "is not valid") from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text; ``add_generation_prompt`` ends it where the next reply begins.

        Errors: whatever the template raises, on purpose or not.
        """
        try:
            return self._template.render(
                messages=[asdict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
        except Refused as error:
            raise self._error(str(error), "refuses this conversation") from error
        except Exception as error:  # a template is a program, and may fail as any program may
            raise self._error(f"{type(error).__name__}: {error}", "fails on this conversation") from error

    @property
    def outputs(self) -> str:
        """All the text that stands in the template, its parts kept apart by line ends and null characters."""
        tree = _ENVIRONMENT.parse(self.source)
        parts = [node.data for node in tree.find_all(nodes.TemplateData)]
        return "\0".join([*parts, *(node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str))])

    @property
    def seeks(self) -> str:
        """Likewise the text that it looks for in messages, to compare them with it or to take them apart at it."""
        tree = _ENVIRONMENT.parse(self.source)
        places = [*tree.find_all(nodes.Compare), *(arg for call in tree.find_all(nodes.Call) for arg in call.args)]
        constants = [node for place in places for node in (place, *place.find_all(nodes.Const))]
        return "\0".join(str(node.value) for node in constants if isinstance(node, nodes.Const))

    def _error(self, what: str, how: str) -> LlmcliError:
        return LlmcliError(f"{self.path}: the chat template {how}: {' '.join(what.split())}")


def find_template(folder: Path) -> ChatTemplate | None:
    """The chat template of a model folder; None if there is none.

    chat_template.jinja comes before tokenizer_config.json, as transformers has it, and the older
    chat_template.json last. Errors: a file that cannot be read, or holds something else.
    """
    path, jinja, older = (folder / name for name in (CONFIG, JINJA, OLDER))
    config = read_json(path) if path.is_file() else {}
    tokens = special_tokens(folder, config)
    if jinja.is_file():
        try:
            return ChatTemplate(jinja.read_text(encoding="utf-8"), tokens, jinja)
        except (OSError, UnicodeDecodeError) as error:
            raise LlmcliError(f"{jinja}: cannot be read: {error}", "check the file") from error
    if config.get("chat_template") is not None:
        return ChatTemplate(_default(config["chat_template"], path), tokens, path)
    if older.is_file() and (found := read_json(older).get("chat_template")) is not None:
        return ChatTemplate(_default(found, older), tokens, older)
    return None


def _default(found: object, path: Path) -> str:
    """The template among what a file holds: itself, or the one named "default" of several."""
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        found = {entry.get("name"): entry.get("template") for entry in found}
    if isinstance(found, dict):
        found = found.get("default")
    if not isinstance(found, str):
        raise LlmcliError(f"{path}: chat_template is no text, nor a list with one named default", "correct the file")
    return found


def special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that tokenizer_config.json names, or in older folders special_tokens_map.json, as text."""
    path = folder / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and path.is_file():
        config = {**config, **read_json(path)}
    found = {name: config.get(name) for name in NAMED}
    contents = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
    return {name: content for name, content in contents.items() if isinstance(content, str)}


class Refused(TemplateError):
    """What a template raises on purpose."""


class GenerationTag(Extension):
    """``{% generation %}`` marks a template's replies for training; the text within is text like any other."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _refuse(message: object) -> None:
    raise Refused(str(message))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own would escape signs of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    """What published templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


_ENVIRONMENT = _environment()
