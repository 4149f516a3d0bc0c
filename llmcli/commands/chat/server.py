"""``chat --endpoint``: a chat with a server's model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from llmcli import endpoint, generation, render, text
from llmcli.commands.chat.session import ALTERNATIVES, ReplyWriter, Session
from llmcli.commands.chat.settings import Settings
from llmcli.commands.options.endpoint import fields_of
from llmcli.commands.options.thinking import Think
from llmcli.commands.streaming.server import stream
from llmcli.errors import LlmcliError, usage_error

if TYPE_CHECKING:
    from llmcli.commands.options.run_log import Logging
    from llmcli.commands.options.sampling import Sampling


class ServerSettings(Settings):
    """The sampling options as fields of a request."""

    def __init__(self, context: click.Context, sampling: Sampling, server: endpoint.Server) -> None:
        self._server = server
        super().__init__(context, sampling)

    def use(self, sampling: Sampling, max_tokens: int | None) -> int | None:
        self._fields = fields_of(sampling, self._server, None)
        return sampling.seed

    def unset(self, name: str) -> str:
        return "the server's choice"

    def fields(self) -> Mapping[str, Any]:
        """The fields for the next reply."""
        seed = self.next_seed()
        return self._fields if seed is None else {**self._fields, "seed": seed}


if TYPE_CHECKING:
    Remote = Session[endpoint.ServerConversation, ServerSettings]
else:
    Remote = Session


class ServerSession(Remote):
    """A chat with a server's model."""

    fields: Mapping[str, Any] = {}  # of the last reply

    def set_think(self, think: Think) -> None:
        if self.raw:
            raise usage_error("--raw uses no chat template, so there is no thinking", "start a chat without --raw")
        endpoint.thinking_fields(self.conversation.server.kind, think.on, think.budget)
        self.think = think

    def answer(self, messages: generation.Messages) -> None:
        kind = self.conversation.server.kind
        thinking = endpoint.thinking_fields(kind, self.think.on, self.think.budget)
        self.fields = {**self.settings.fields(), **thinking}
        alternatives = ALTERNATIVES if self.probs else None
        writing = self.conversation.server.stream(
            self.conversation.request(messages, self.fields, self.settings.max_tokens, alternatives)
        )
        both = ReplyWriter(by_probability=self.probs)
        writer, thoughts = both.answer, both.thoughts
        tokens: list[endpoint.ServerToken] = []
        try:
            reports = stream(writing, writer, tokens, thoughts)
        except LlmcliError as error:
            thoughts.end_line()
            if not writing.text:
                raise
            writer.end_line()
            self.conversation.keep(messages, writing.text, tokens, writing.thoughts)
            self.report(error)
            return
        self.interrupted = writing.finish == "interrupted"
        both.end(empty=not writing.text)
        if self.interrupted and not writing.text:
            render.note("interrupted before the first token; the chat is unchanged", sys.stderr)
            return
        self.conversation.keep(messages, writing.text, tokens, writing.thoughts)
        self.log((messages, self.fields.get("seed"), writing))
        if self.probs:
            render.print_server_probabilities(reports, sys.stderr)
        if self.verbose:
            render.print_server_summary(writing, sys.stderr, seed=self.fields.get("seed"))
        elif writing.finish != "stop_token":
            render.note(f"stopped: {render.ending(writing.finish)}", sys.stderr)

    def explain(self, index: int) -> None:
        render.print_server_step(self.conversation.step(index, self.fields), sys.stderr)


def server_session(
    server: endpoint.Server,
    sampling: Sampling,
    logging: Logging,
    *,
    raw: bool,
    file: text.ChatFile | None,
    verbose: bool,
) -> ServerSession:
    """Start a chat with the server's model."""
    settings = ServerSettings(click.get_current_context(), sampling, server)

    def log(reply: tuple[generation.Messages, int | None, endpoint.ServerGeneration]) -> None:
        messages, seed, writing = reply
        prompt, finish = messages[-1].content, writing.finish or ""
        logging.keep_server_text(server.name, prompt, seed, writing.text, finish, writing.tokens)

    return ServerSession(endpoint.ServerConversation(server, raw=raw), settings, raw, file, verbose, log)
