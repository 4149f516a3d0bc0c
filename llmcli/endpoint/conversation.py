"""A conversation with a server's model: the messages so far, which are sent anew with each turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmcli.endpoint.server import Ask, Server
from llmcli.endpoint.step import ServerStep, step_of
from llmcli.endpoint.tokens import Token
from llmcli.errors import usage_error
from llmcli.text.chat_template import Message
from llmcli.text.turns import plain

Messages = tuple[Message, ...]


class ServerConversation:
    """``messages`` are what was said; change them at will. A ``raw`` one is a text that the model continues."""

    def __init__(self, server: Server, *, raw: bool) -> None:
        self.server = server
        self.messages: Messages = ()
        self._raw = raw
        self._last: tuple[Messages, tuple[Token, ...]] | None = None

    @property
    def name(self) -> str:
        return self.server.name

    def check(self, messages: Messages) -> None:
        """Only the server can tell what its template refuses."""

    def ask(self, messages: Messages, fields: Mapping[str, Any], max_tokens: int, rivals: int | None) -> Ask:
        """What the reply to ``messages`` is asked with."""
        return Ask(plain(messages) if self._raw else messages, max_tokens, fields, rivals=rivals)

    def keep(self, messages: Messages, reply: str, tokens: Sequence[Token]) -> None:
        """Go on from a reply, or from as much of it as was written."""
        self.messages = (*messages, Message("assistant", reply))
        self._last = (self.messages, tuple(tokens))

    def step(self, index: int, fields: Mapping[str, Any]) -> ServerStep:
        """A token of the last reply. Errors: nothing was told of it."""
        messages, tokens = self._last or ((), ())
        if not tokens or messages != self.messages:
            raise usage_error("of this reply no probabilities were asked for", "/probs, and then /regenerate")
        if not -len(tokens) <= index < len(tokens):
            raise usage_error(f"the last reply has no token {index}", f"they are numbered from 0 to {len(tokens) - 1}")
        return step_of(self.name, plain(messages[:-1]), tokens, index % len(tokens), fields.get("seed"))

    @property
    def context(self) -> int:
        """Errors: always, for the server alone knows."""
        raise usage_error("the server alone can count its model's tokens", "with --verbose each reply tells some")

    def sizes(self) -> list[int]:
        """Errors: likewise."""
        return [self.context]
