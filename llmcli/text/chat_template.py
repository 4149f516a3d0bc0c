"""A model's chat template: how the messages of a conversation become one text.

Templates are found where transformers finds them and rendered as ``apply_chat_template`` renders them, in Jinja's
sandbox, because a template is third-party code.
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

TOKENIZER_CONFIG, TEMPLATE_FILE, OLDER_TEMPLATE_FILE = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
ROLES = ("system", "user", "assistant")
# The special tokens that a template may use by name.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Message:
    """One message of a conversation; ``role`` is one of ``ROLES``."""

    role: str
    content: str


class ChatTemplate:
    """A compiled template. ``tokens`` are the special tokens it may use by name; ``path`` is the file it came from.

    Raises LlmcliError if ``source`` is not valid Jinja.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], path: Path) -> None:
        self.source = source
        self.path = path
        self._tokens = dict(tokens)
        try:
            self._template: Template = _ENVIRONMENT.from_string(source)
        except TemplateSyntaxError as error:
            raise self._error("is invalid", f"{error.message} (line {error.lineno})") from error
        except Exception as error:  # Jinja compiles to Python and evaluates constant expressions
            raise self._error("is invalid", f"{type(error).__name__}: {error}") from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the conversation as text; ``add_generation_prompt`` appends the beginning of the next reply.

        Raises LlmcliError if the template rejects the messages or fails.
        """
        try:
            return self._template.render(
                messages=[asdict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
        except TemplateRejection as error:
            raise self._error("rejects this conversation", str(error)) from error
        except Exception as error:  # a template is a program and may fail in any way
            raise self._error("fails on this conversation", f"{type(error).__name__}: {error}") from error

    @property
    def output_text(self) -> str:
        """All literal text that the template may output, its parts separated by null characters."""
        tree = _ENVIRONMENT.parse(self.source)
        parts = [node.data for node in tree.find_all(nodes.TemplateData)]
        return "\0".join([*parts, *(node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str))])

    @property
    def compared_text(self) -> str:
        """All literals that the template compares with messages or splits them at, separated by null characters."""
        tree = _ENVIRONMENT.parse(self.source)
        found = [*tree.find_all(nodes.Compare), *(arg for call in tree.find_all(nodes.Call) for arg in call.args)]
        constants = [node for parent in found for node in (parent, *parent.find_all(nodes.Const))]
        return "\0".join(str(node.value) for node in constants if isinstance(node, nodes.Const))

    def _error(self, problem: str, detail: str) -> LlmcliError:
        return LlmcliError(f"{self.path}: the chat template {problem}: {' '.join(detail.split())}")


def find_template(folder: Path) -> ChatTemplate | None:
    """Return the chat template of a model folder; None if it has none.

    chat_template.jinja takes precedence over tokenizer_config.json, as in transformers, and the older
    chat_template.json comes last. Raises LlmcliError if a file cannot be read or has the wrong contents.
    """
    path, jinja, older = (folder / name for name in (TOKENIZER_CONFIG, TEMPLATE_FILE, OLDER_TEMPLATE_FILE))
    config = read_json(path) if path.is_file() else {}
    tokens = special_tokens(folder, config)
    if jinja.is_file():
        try:
            return ChatTemplate(jinja.read_text(encoding="utf-8"), tokens, jinja)
        except (OSError, UnicodeDecodeError) as error:
            raise LlmcliError(f"{jinja}: cannot be read: {error}", "check the file") from error
    if config.get("chat_template") is not None:
        return ChatTemplate(_default_template(config["chat_template"], path), tokens, path)
    if older.is_file() and (found := read_json(older).get("chat_template")) is not None:
        return ChatTemplate(_default_template(found, older), tokens, older)
    return None


def _default_template(value: object, path: Path) -> str:
    """The template in a file's "chat_template": a string, or the entry named "default" of several."""
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    if isinstance(value, dict):
        value = value.get("default")
    if not isinstance(value, str):
        raise LlmcliError(
            f'{path}: chat_template is neither a string nor a list with an entry named "default"', "correct the file"
        )
    return value


def special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of each named token in tokenizer_config.json, or special_tokens_map.json in older folders."""
    path = folder / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and path.is_file():
        config = {**config, **read_json(path)}
    found = {name: config.get(name) for name in NAMED_TOKENS}
    contents = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
    return {name: content for name, content in contents.items() if isinstance(content, str)}


class TemplateRejection(TemplateError):
    """What a template raises intentionally, through ``raise_exception``."""


class GenerationTag(Extension):
    """``{% generation %}`` marks replies for training; it does not change the rendered text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: object) -> None:
    raise TemplateRejection(str(message))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Serialize without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    """The Jinja environment that published templates expect."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


_ENVIRONMENT = _environment()
