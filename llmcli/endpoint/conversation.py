"""A conversation with a server's model: its messages, all of which are sent again with each turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmcli.endpoint.server import Request, Server
from llmcli.endpoint.tokens import ServerToken
from llmcli.endpoint.views import ServerStep, explain_token
from llmcli.errors import usage_error
from llmcli.text.chat_format import join_messages
from llmcli.text.chat_template import Message

Messages = tuple[Message, ...]


class ServerConversation:
    """``messages`` is the conversation so far, and may be changed. If ``raw``, the model continues them as one text."""

    def __init__(self, server: Server, *, raw: bool) -> None:
        self.server = server
        self.messages: Messages = ()
        self._raw = raw
        self._last: tuple[Messages, tuple[ServerToken, ...]] | None = None

    @property
    def name(self) -> str:
        return self.server.name

    def check(self, messages: Messages) -> None:
        """Do nothing: only the server knows what its chat template rejects."""

    def request(
        self, messages: Messages, fields: Mapping[str, Any], max_tokens: int, top_logprobs: int | None
    ) -> Request:
        """Return the request for the reply to ``messages``."""
        prompt = join_messages(messages) if self._raw else messages
        return Request(prompt, max_tokens, fields, top_logprobs=top_logprobs)

    def keep(self, messages: Messages, reply: str, tokens: Sequence[ServerToken], thoughts: str = "") -> None:
        """Continue the conversation from ``messages`` and ``reply``, which may be incomplete."""
        self.messages = (*messages, Message("assistant", reply, thoughts))
        self._last = (self.messages, tuple(tokens))

    def step(self, index: int, fields: Mapping[str, Any]) -> ServerStep:
        """Explain a token of the last reply. Raises LlmcliError if its log probabilities were not requested."""
        messages, tokens = self._last or ((), ())
        if not tokens or messages != self.messages:
            raise usage_error("no probabilities were requested for this reply", kind="reply-without-probabilities")
        if not -len(tokens) <= index < len(tokens):
            raise usage_error(f"the last reply has no token {index}", f"it has tokens 0 to {len(tokens) - 1}")
        return explain_token(self.name, join_messages(messages[:-1]), tokens, index % len(tokens), fields.get("seed"))

    @property
    def context(self) -> int:
        """Raises LlmcliError, because only the server can count tokens."""
        raise usage_error("only the server can count its model's tokens", kind="server-counts-tokens")

    def sizes(self) -> list[int]:
        """Raises LlmcliError, as ``context`` does."""
        return [self.context]
