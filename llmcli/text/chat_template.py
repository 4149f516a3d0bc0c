"""A model's chat template: how the messages of a conversation become one text.

Templates are found where transformers finds them and rendered as ``apply_chat_template`` renders them, in a process of
their own (``template_worker``), because a template is third-party code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError, did_you_mean, usage_error
from llmcli.files.formats import stand_in
from llmcli.files.json import read_json
from llmcli.files.reading import read_file
from llmcli.text.gguf.vocabulary import errors_of, vocabulary_of
from llmcli.text.surrogates import is_unicode
from llmcli.text.template_process import PROCESS, UNUSABLE
from llmcli.text.tokenizer_config import TOKENIZER_CONFIG, read_tokenizer_config

TEMPLATE_FILE, OLDER_TEMPLATE_FILE = "chat_template.jinja", "chat_template.json"
MAX_SOURCE = 2**20  # characters; published templates have at most some ten thousand
ROLES = ("system", "user", "assistant")
REASONING = "reasoning_content"  # a message's thoughts, in JSON and as most templates call them
REASONING_NAMES = (REASONING, "reasoning", "thinking")  # as templates call them
OWN_VARIABLES = ("messages", "add_generation_prompt")  # those that no one else may set


@dataclass(frozen=True)
class Message:
    """One message; ``role`` is one of ``ROLES``, ``reasoning`` what the model thought before ``content``."""

    role: str
    content: str
    reasoning: str = ""

    def record(self) -> dict[str, str]:
        """Return the message as it is in JSON."""
        thoughts = {REASONING: self.reasoning} if self.reasoning else {}
        return {"role": self.role, "content": self.content, **thoughts}


class ChatTemplate:
    """A valid template. ``tokens`` are the special tokens it may use by name; ``path`` is the file it came from.

    ``output_text`` is all literal text that the template may output, ``compared_text`` all that it compares with
    messages or splits them at; their parts are separated by null characters. ``names`` are the variables that it reads,
    ``arguments`` those of them that it does not set itself. Raises LlmcliError if ``source`` is not valid Jinja.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], path: Path) -> None:
        self.source = source
        self.path = path
        self._tokens = dict(tokens)
        self._unusable: dict[str, Any] | None = None  # the answer to a request that took too long
        if len(source) > MAX_SOURCE:
            raise self._error("is invalid", f"longer than {MAX_SOURCE} characters")
        found = self._ask({"source": source})
        self.output_text: str = found["output"]
        self.compared_text: str = found["compared"]
        self.names: frozenset[str] = frozenset(found["names"])
        self.arguments: tuple[str, ...] = tuple(
            name for name in found["arguments"] if name not in (*OWN_VARIABLES, *tokens)
        )
        self.values: dict[str, Any] = {}

    @property
    def bos(self) -> str:
        """The text of the BOS token, or "" if the model's files name none."""
        return self._tokens.get("bos_token", "")

    def with_arguments(self, values: Mapping[str, Any]) -> ChatTemplate:
        """Return the same template with values for some of its variables, besides those that it has already.

        Raises LlmcliError for a variable that the template does not read, or that is not for others to set.
        """
        for name in values:
            if name in OWN_VARIABLES:
                raise usage_error(f"the variable {name} of a chat template cannot be set", "omit it")
            if name not in self.names:
                known = f"it reads: {', '.join(self.arguments)}" if self.arguments else "it reads no variable"
                hint = did_you_mean(name, self.arguments) or known
                raise usage_error(f"{self.path}: the chat template does not read the variable {name}", hint)
        other = copy(self)
        other.values = {**self.values, **values}
        return other

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the conversation as text; ``add_generation_prompt`` appends the beginning of the next reply.

        Raises LlmcliError if the template rejects the messages, fails, writes far more than the messages or invalid
        text, or takes too much time or memory.
        """
        variables = {
            "tools": None,
            "documents": None,
            **self._tokens,
            **self.values,
            "messages": [self._variables(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        text: str = self._ask({"source": self.source, "variables": variables})["text"]
        if not is_unicode(text) and all(is_unicode(message.content + message.reasoning) for message in messages):
            raise self._error("writes text that is not valid Unicode", "it has lone surrogates")
        return text

    def _variables(self, message: Message) -> dict[str, str]:
        """A message as the template sees it: thoughts only under the names that occur in it."""
        names = [name for name in REASONING_NAMES if name in self.source] if message.reasoning else []
        return {"role": message.role, "content": message.content} | dict.fromkeys(names, message.reasoning)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._unusable or PROCESS.ask(request)
        if "error" in answer:
            if answer["error"] == UNUSABLE:  # the next request would take as long
                self._unusable = answer
            raise self._error(answer["error"], answer["detail"])
        return answer

    def _error(self, problem: str, detail: str) -> LlmcliError:
        return LlmcliError(
            f"{self.path}: the chat template {problem}: {' '.join(detail.split())}", kind="chat-template"
        )


def find_template(folder: Path, file: Path | None = None) -> ChatTemplate | None:
    """Return the chat template of a model folder or a GGUF file; None if it has none. ``file`` replaces it.

    chat_template.jinja takes precedence over tokenizer_config.json, as in transformers, and the older
    chat_template.json comes last. Raises LlmcliError if a file cannot be read or has the wrong contents.
    """
    if folder.is_file():
        vocabulary = vocabulary_of(folder)
        with errors_of(folder):
            source = vocabulary.template if file is None else _read_source(file)
        return None if source is None else ChatTemplate(source, vocabulary.template_tokens, file or folder)
    path, jinja, older = (folder / name for name in (TOKENIZER_CONFIG, TEMPLATE_FILE, OLDER_TEMPLATE_FILE))
    config = read_tokenizer_config(folder)
    tokens, template = config.variables, config.raw.get("chat_template")
    if file is not None:
        return ChatTemplate(_read_source(file), tokens, file)
    if jinja.is_file():
        other = stand_in(jinja)
        if other is not None:
            raise other
        return ChatTemplate(_read_source(jinja), tokens, jinja)
    if template is not None:
        return ChatTemplate(_default_template(template, path), tokens, path)
    if older.is_file() and (found := read_json(older).get("chat_template")) is not None:
        return ChatTemplate(_default_template(found, older), tokens, older)
    return None


def _read_source(file: Path) -> str:
    try:
        source = read_file(file, MAX_SOURCE).decode()
    except OSError as error:
        raise LlmcliError(f"{file}: cannot be read: {error.strerror or error}", "check the file") from error
    except UnicodeDecodeError as error:
        raise LlmcliError(f"{file}: not valid UTF-8 at byte {error.start}", "check the file") from error
    if not source.strip():
        raise LlmcliError(f"{file}: the chat template is empty", "check the file")
    return source


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
