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
from llmcli.commands.options.thinking import NO_CHOICE, Think
from llmcli.commands.shell.hints import describe
from llmcli.commands.shell.interrupt import Interrupt
from llmcli.errors import LlmcliError, out_of_memory, usage_error

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


class ReplyWriter:
    """Writes thoughts to stderr, dimmed, and the answer to stdout."""

    def __init__(self, *, by_probability: bool) -> None:
        self.answer = render.TextWriter(sys.stdout, by_probability=by_probability)
        self.thoughts = render.TextWriter(sys.stderr, by_probability=False, style="dim")

    def write(self, piece: text.Piece, prob: float = 1.0) -> None:
        """Write a piece; an answer begins on a new line."""
        self.thoughts.write(piece.thoughts)
        if piece.answer:
            self.thoughts.end_line()
            self.answer.write(piece.answer, prob)

    def end(self, *, empty: bool) -> None:
        """End the last line; every reply prints at least one to stdout."""
        self.thoughts.end_line()
        if empty:
            self.answer.write("\n")
        self.answer.end_line()


T = TypeVar("T", bound=AnyConversation)
S = TypeVar("S", bound="Settings")


@dataclass
class Session(ABC, Generic[T, S]):
    """A chat and its state.

    ``raw`` chats use no template. ``file`` is saved after every turn. ``log`` keeps a reply in the run log. ``think``
    says whether and how long the model thinks. ``probs``: show probabilities. ``interrupted``: Ctrl-C stopped the last
    reply. ``failed``: some line failed.
    """

    conversation: T
    settings: S
    raw: bool
    file: text.ChatFile | None
    verbose: bool
    log: Callable[[Any], None]
    think: Think = NO_CHOICE
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
    def set_think(self, think: Think) -> None:
        """Let the model think as ``think`` says from now on. Raises LlmcliError if it cannot be told to."""

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


@dataclass
class LocalSession(Local):
    """A chat with a local model. ``template`` is its chat template, in which thinking is as the model prefers."""

    template: text.ChatTemplate | None = None

    def set_think(self, think: Think) -> None:
        chat, template = self.conversation, self.template
        if template is None:
            raise usage_error("--raw uses no chat template, so there is no thinking", "start a chat without --raw")
        think.check(chat.name, chat.thinking)
        chat.form = text.TemplateFormat(think.switched(template, chat.thinking), chat.loaded.tokenizer)
        self.think = think

    def answer(self, messages: generation.Messages) -> None:
        sampler = self.settings.sampler()
        reply = self.conversation.answer(messages, sampler, self.settings.max_tokens, self.think.budget)
        self._write(reply)
        generation, thoughts = reply.generation, reply.message.reasoning
        self.interrupted = generation.finish == "interrupted"
        if not reply.choices or (self.interrupted and thoughts and not reply.message.content):
            what = "answer" if thoughts else "first token"
            render.note(f"interrupted before the {what}; the chat is unchanged", sys.stderr)
            return
        self.conversation.keep(reply)
        self.log(reply)
        if self.verbose:
            context, count = self.conversation.context, reply.thought_tokens
            render.print_summary(generation, sys.stderr, seed=sampler.seed, context=context, thoughts=count)
        elif generation.finish != "stop_token":
            where = " while thinking" if thoughts and not reply.message.content else ""
            render.note(f"stopped: {render.ENDINGS[generation.finish]}{where}", sys.stderr)

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
        writer = ReplyWriter(by_probability=self.probs)
        reports: list[explain.GeneratedToken] = []
        with Interrupt() as interrupt:
            try:
                for step, piece in reply:
                    writer.write(piece, step.choice.prob)
                    if self.probs:
                        reports.append(
                            explain.generated_token_of(step, self.conversation.loaded.tokenizer, ALTERNATIVES)
                        )
                    interrupt.point()
            except KeyboardInterrupt:
                writer.write(reply.interrupt())
        writer.end(empty=not reply.message.content)
        if reports:
            with render.at_most(describe_model(self.conversation.loaded).digits):
                render.print_probabilities(reports, sys.stderr)
