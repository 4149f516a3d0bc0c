"""``chat --endpoint``: a chat whose replies a server writes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands.chat.session import RIVALS, Session
from llmcli.commands.chat.settings import Settings
from llmcli.commands.options.endpoint import fields_of
from llmcli.commands.streaming.server import stream
from llmcli.errors import LlmcliError

if TYPE_CHECKING:
    from llmcli.commands.options.sampling import Sampling
    from llmcli.endpoint.conversation import Messages, ServerConversation
    from llmcli.endpoint.server import Server
    from llmcli.endpoint.tokens import Token


class ServerSettings(Settings):
    """As the fields of a request."""

    def __init__(self, context: click.Context, sampling: Sampling, server: Server) -> None:
        self._server = server
        super().__init__(context, sampling)

    def use(self, sampling: Sampling) -> int | None:
        self._fields = fields_of(sampling, self._server, None)
        return sampling.seed

    def fields(self) -> Mapping[str, Any]:
        """Those of the next reply."""
        seed = self.next_seed()
        return self._fields if seed is None else {**self._fields, "seed": seed}


if TYPE_CHECKING:
    There = Session[ServerConversation, ServerSettings]
else:
    There = Session


class ServerSession(There):
    """Replies come from a server."""

    fields: Mapping[str, Any] = {}  # of the last reply

    def answer(self, messages: Messages) -> None:
        from llmcli.render.generation import TextWriter, ending, print_server_probabilities, print_server_summary
        from llmcli.render.terminal import note

        self.fields = self.settings.fields()
        rivals = RIVALS if self.probs else None
        writing = self.conversation.server.write(
            self.conversation.ask(messages, self.fields, self.settings.max_tokens, rivals)
        )
        writer = TextWriter(sys.stdout, by_probability=self.probs)
        tokens: list[Token] = []
        try:
            told = stream(writing, writer, tokens)
        except LlmcliError as error:
            if not writing.text:
                raise
            writer.end_line()
            self.conversation.keep(messages, writing.text, tokens)
            self.tell(error)
            return
        self.interrupted = writing.finish == "interrupted"
        if not writing.text:
            writer.write("\n")  # so that there is one line at least for each reply
        writer.end_line()
        if self.interrupted and not writing.text:
            note("interrupted before the first token: the chat is as it was", sys.stderr)
            return
        self.conversation.keep(messages, writing.text, tokens)
        if self.probs:
            print_server_probabilities(told, sys.stderr)
        if self.verbose:
            print_server_summary(writing, sys.stderr, seed=self.fields.get("seed"))
        elif writing.finish != "stop_token":
            note(f"stopped: {ending(writing.finish)}", sys.stderr)

    def explain(self, index: int) -> None:
        from llmcli.render.step import print_server_step

        print_server_step(self.conversation.step(index, self.fields), sys.stderr)


def server_session(server: Server, sampling: Sampling, *, raw: bool, file: Path | None, verbose: bool) -> ServerSession:
    """A chat with the server's model."""
    from llmcli.endpoint.conversation import ServerConversation

    settings = ServerSettings(click.get_current_context(), sampling, server)
    return ServerSession(ServerConversation(server, raw=raw), settings, raw, file, verbose)
