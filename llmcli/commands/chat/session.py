"""A running chat: its replies are shown and saved, and its errors reported."""

from __future__ import annotations

import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from llmcli import explain, generation, render, text
from llmcli.commands.options.model import describe_model
from llmcli.commands.shell.hints import describe
from llmcli.commands.shell.interrupt import Interrupt
from llmcli.errors import LlmcliError, out_of_memory

if TYPE_CHECKING:
    from llmcli.commands.chat.settings import SamplerSettings, Settings

ALTERNATIVES = 5  # per token in the table of /probs
TOP = 10  # candidates in the table of /explain


class AnyConversation(Protocol):
    """A conversation with a local model or with a server's."""

    messages: generation.Messages

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def context(self) -> int:
        """The model's context length in tokens."""

    def check(self, messages: generation.Messages) -> None:
        """Raise LlmcliError if the messages cannot be sent to the model."""

    def sizes(self) -> list[int]:
        """Tokens of each message."""


T = TypeVar("T", bound=AnyConversation)
S = TypeVar("S", bound="Settings")


@dataclass
class Session(ABC, Generic[T, S]):
    """A chat and its state.

    ``raw`` chats use no template. ``file`` is saved after every turn. ``log`` keeps a reply in the run log. ``probs``:
    show probabilities. ``interrupted``: Ctrl-C stopped the last reply. ``failed``: some line failed.
    """

    conversation: T
    settings: S
    raw: bool
    file: text.ChatFile | None
    verbose: bool
    log: Callable[[Any], None]
    probs: bool = False
    interrupted: bool = False
    failed: bool = False

    def report(self, error: Exception) -> None:
        """Print an error that the user can fix on one line. Any other error is raised again."""
        known = error if isinstance(error, LlmcliError) else out_of_memory(error)
        if known is None:
            raise error
        self.failed = True
        if self.verbose:
            traceback.print_exception(error)
        render.note(render.one_line(f"llmcli: {describe(known)}"), sys.stderr)

    def say(self, content: str) -> None:
        """Answer a turn of the user."""
        self.answer((*self.conversation.messages, text.Message("user", content)))

    @abstractmethod
    def answer(self, messages: generation.Messages) -> None:
        """Show a reply to ``messages``. They become the conversation unless the reply is empty."""

    @abstractmethod
    def explain(self, index: int) -> None:
        """Show how the last reply's token number ``index`` was chosen. Raises LlmcliError if there is no such token."""

    def save(self) -> None:
        """Save the chat to --chat's file, if there is one."""
        if self.file is not None:
            self.file.write(self.conversation.name, self.conversation.messages)


AnySession = Session[Any, Any]
if TYPE_CHECKING:
    Local = Session[generation.Conversation, SamplerSettings]
else:
    Local = Session  # at run time, naming its types would import torch


class LocalSession(Local):
    """A chat with a local model."""

    def answer(self, messages: generation.Messages) -> None:
        sampler = self.settings.sampler()
        reply = self.conversation.answer(messages, sampler, self.settings.max_tokens)
        self._write(reply)
        generation = reply.generation
        self.interrupted = generation.finish == "interrupted"
        if not reply.choices:
            render.note("interrupted before the first token; the chat is unchanged", sys.stderr)
            return
        self.conversation.keep(reply)
        self.log(reply)
        if self.verbose:
            render.print_summary(generation, sys.stderr, seed=sampler.seed, context=self.conversation.context)
        elif generation.finish != "stop_token":
            render.note(f"stopped: {render.ENDINGS[generation.finish]}", sys.stderr)

    def explain(self, index: int) -> None:
        chat = self.conversation
        step, context = chat.step(index)
        assert chat.last is not None
        report = explain.step_report(
            step, chat.last.sampler, chat.loaded.tokenizer, prompt_ids=chat.last.prompt, context_ids=context, top=TOP
        )
        with render.at_most(describe_model(chat.loaded).digits):
            render.print_step(report, sys.stderr)

    def _write(self, reply: generation.Reply) -> None:
        """Print the reply as it is generated, then the table of its probabilities if they are on."""
        writer = render.TextWriter(sys.stdout, by_probability=self.probs)
        reports: list[explain.GeneratedToken] = []
        with Interrupt() as interrupt:
            try:
                for step, chunk in reply:
                    writer.write(chunk, step.choice.prob)
                    if self.probs:
                        reports.append(
                            explain.generated_token_of(step, self.conversation.loaded.tokenizer, ALTERNATIVES)
                        )
                    interrupt.point()
            except KeyboardInterrupt:
                writer.write(reply.generation.interrupt())
        if not reply.generation.text:
            writer.write("\n")  # every reply prints at least one line
        writer.end_line()
        if reports:
            with render.at_most(describe_model(self.conversation.loaded).digits):
                render.print_probabilities(reports, sys.stderr)
