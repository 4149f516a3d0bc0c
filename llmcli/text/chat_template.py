"""A model's chat template: how the messages of a conversation become one text.

Templates are found where transformers finds them and rendered as ``apply_chat_template`` renders them, in a process of
their own (``template_worker``), because a template is third-party code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError
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


@dataclass(frozen=True)
class Message:
    """One message of a conversation; ``role`` is one of ``ROLES``."""

    role: str
    content: str


class ChatTemplate:
    """A valid template. ``tokens`` are the special tokens it may use by name; ``path`` is the file it came from.

    ``output_text`` is all literal text that the template may output, ``compared_text`` all that it compares with
    messages or splits them at; their parts are separated by null characters. Raises LlmcliError if ``source`` is not
    valid Jinja.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], path: Path) -> None:
        self.source = source
        self.path = path
        self._tokens = dict(tokens)
        self._unusable: dict[str, Any] | None = None  # the answer to a request that took too long
        if len(source) > MAX_SOURCE:
            raise self._error("is invalid", f"longer than {MAX_SOURCE} characters")
        literals = self._ask({"source": source})
        self.output_text: str = literals["output"]
        self.compared_text: str = literals["compared"]

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the conversation as text; ``add_generation_prompt`` appends the beginning of the next reply.

        Raises LlmcliError if the template rejects the messages, fails, writes far more than the messages or invalid
        text, or takes too much time or memory.
        """
        variables = {
            "messages": [asdict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._tokens,
        }
        text: str = self._ask({"source": self.source, "variables": variables})["text"]
        if not is_unicode(text) and all(is_unicode(message.content) for message in messages):
            raise self._error("writes text that is not valid Unicode", "it has lone surrogates")
        return text

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


def find_template(folder: Path) -> ChatTemplate | None:
    """Return the chat template of a model folder or a GGUF file; None if it has none.

    chat_template.jinja takes precedence over tokenizer_config.json, as in transformers, and the older
    chat_template.json comes last. Raises LlmcliError if a file cannot be read or has the wrong contents.
    """
    if folder.is_file():
        vocabulary = vocabulary_of(folder)
        with errors_of(folder):
            source = vocabulary.template
        return None if source is None else ChatTemplate(source, vocabulary.template_tokens, folder)
    path, jinja, older = (folder / name for name in (TOKENIZER_CONFIG, TEMPLATE_FILE, OLDER_TEMPLATE_FILE))
    config = read_tokenizer_config(folder)
    tokens, template = config.variables, config.raw.get("chat_template")
    if jinja.is_file():
        other = stand_in(jinja)
        if other is not None:
            raise other
        try:
            return ChatTemplate(read_file(jinja, MAX_SOURCE).decode(), tokens, jinja)
        except (OSError, UnicodeDecodeError) as error:
            raise LlmcliError(f"{jinja}: cannot be read: {error}", "check the file") from error
    if template is not None:
        return ChatTemplate(_default_template(template, path), tokens, path)
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
